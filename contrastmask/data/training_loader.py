"""Batches for training that depend on the seed and the iteration only."""

import itertools
import logging

import torch
from detectron2.data import DatasetFromList, MapDataset, build_detection_train_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm

from ..seeding import FOR_EXAMPLE, FOR_SAMPLER, FOR_WORKERS, seeded
from .datasets import forget_annotations, training_records

__all__ = ["TrainingLoader", "build_training_loader"]

logger = logging.getLogger(__name__)


def build_training_loader(cfg, mapper):
    """
    Args:
        cfg (CfgNode): its sampler, batch size, grouping and workers are used as in Detectron2's
            ``build_detection_train_loader``.
        mapper (callable): from the dict of an image in Detectron2's format to a training example.

    Returns:
        TrainingLoader: for this process.
    """
    # Some samplers draw their seed here.
    with seeded(FOR_SAMPLER, max(cfg.SEED, 0)):
        parts = build_detection_train_loader.from_config(
            cfg, mapper=mapper, dataset=training_records(cfg)
        )
    loader = TrainingLoader(
        parts["dataset"],
        parts["mapper"],
        parts["sampler"],
        total_batch_size=parts["total_batch_size"],
        aspect_ratio_grouping=parts["aspect_ratio_grouping"],
        num_workers=parts["num_workers"],
        seed=max(cfg.SEED, 0),
    )
    forget_annotations()  # the loader has a compact copy
    return loader


class TrainingLoader:
    """
    Endless batches, of the same images as from Detectron2's loader, that can begin anywhere.

    A plan says which images form which batch. It needs the order of the sampler and the sizes of
    the images, so the plan of past batches is replayed without reading any image. The random
    numbers of an example (augmentation) follow from the seed and the example's place in the stream
    of all processes. So a batch depends neither on the number of workers nor on interruptions.
    """

    def __init__(
        self,
        dataset,
        mapper,
        sampler,
        *,
        total_batch_size,
        aspect_ratio_grouping=True,
        num_workers=0,
        seed=0,
    ):
        """
        Args:
            dataset (list[dict]): images in Detectron2's format.
            mapper (callable): from one of these dicts to a training example.
            sampler (Sampler): one of Detectron2's samplers for training; yields, for this process,
                an endless stream of indices of `dataset`.
            total_batch_size (int): images in a batch of all processes together.
            aspect_ratio_grouping (bool): no batch mixes images that are wider than high with
                others.
            num_workers (int): processes that load images; 0 for none but this one.
            seed (int): of sampler and augmentation, >= 0.

        Raises:
            ValueError: if the batch cannot be divided among the processes.
        """
        world_size = comm.get_world_size()
        if total_batch_size <= 0 or total_batch_size % world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {total_batch_size}, which {world_size} processes cannot "
                "share equally"
            )
        self.batch_size = total_batch_size // world_size
        self.num_workers = num_workers
        self.sampler = sampler
        self._groups = _aspect_ratio_groups(dataset) if aspect_ratio_grouping else None
        examples = MapDataset(DatasetFromList(dataset, copy=False), mapper)
        self._dataset = _SeededDataset(examples, seed)
        self._iteration = 0
        self.begin_at(0, seed)

    def begin_at(self, iteration, seed):
        """
        Args:
            iteration (int): number of batches that the next iterator leaves out.
            seed (int): of sampler and augmentation, >= 0.
        """
        self._iteration = iteration
        self._dataset.seed = seed
        self.sampler._seed = seed  # no sampler of Detectron2 has a public way

    def __iter__(self):
        # Runs when the first batch is asked for: begin_at may be called until then.
        generator = torch.Generator().manual_seed(FOR_WORKERS)
        yield from torch.utils.data.DataLoader(
            self._dataset,
            batch_sampler=itertools.islice(self.plan(), self._iteration, None),
            num_workers=self.num_workers,
            collate_fn=trivial_batch_collator,
            generator=generator,  # or it would draw a number of the model's
        )

    def plan(self):
        """
        Yields:
            list[tuple[int, int]]: a batch of this process: for each example its place in the
            stream of all processes, and its index in the dataset.
        """
        rank, world_size = comm.get_rank(), comm.get_world_size()
        places = itertools.count(rank, world_size)
        filling = [], []
        for place, index in zip(places, self.sampler):
            batch = filling[self._groups[index] if self._groups else 0]
            batch.append((place, index))
            if len(batch) == self.batch_size:
                yield batch[:]
                batch.clear()


def _aspect_ratio_groups(dataset):
    """For each image 1 if it is wider than high, else 0 (bytes)."""
    unknown = sum("width" not in d or "height" not in d for d in dataset)
    if unknown:
        logger.warning(
            f"{unknown} of {len(dataset)} training images have no 'width' or 'height' in the "
            "dataset: they are grouped with images that are higher than wide "
            "(DATALOADER.ASPECT_RATIO_GROUPING)"
        )
    return bytes(d.get("width", 0) > d.get("height", 0) for d in dataset)


class _SeededDataset(torch.utils.data.Dataset):
    """Examples by (place in the stream, index); the place decides the random numbers."""

    def __init__(self, examples, seed):
        self.examples = examples
        self.seed = seed

    def __getitem__(self, place_and_index):
        place, index = place_and_index
        with seeded(FOR_EXAMPLE, self.seed, place):
            return self.examples[index]
