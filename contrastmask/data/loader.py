"""Batches and random numbers of training that depend on the seed and the iteration only."""

import itertools
import random
from typing import Callable, Iterator, List

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetFromList, MapDataset, build_detection_train_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from .datasets import training_records

__all__ = ["TrainingLoader"]

# What random numbers are for: the first number of the key that they follow from. Other numbers
# would change how trainings of earlier versions go on.
_SAMPLER, _EXAMPLE, _STEP = 0, 2, 3


class TrainingLoader:
    """
    Endless batches, of the same images as from Detectron2's loader, that can begin at any
    iteration and do not depend on the number of workers.

    Which images form a batch follows from the order of the sampler and the sizes of the images, so
    past batches are counted off without reading an image. The random numbers of an example
    (augmentation) follow from the seed and its place in the stream of all processes. With each
    batch the generators of Python, NumPy and PyTorch are seeded for the training step that uses
    it, from the seed, the process and the iteration.

    With gradient accumulation the loader yields the parts of a batch one after the other. They are
    what as many processes would have got, with the same random numbers: part k of process r of W
    stands for process r + kW.
    """

    @configurable
    def __init__(
        self,
        dataset: List[dict],
        *,
        mapper: Callable[[dict], dict],
        sampler: Sampler,
        total_batch_size: int,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        num_parts: int = 1,
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
            seed (int): >= 0.
            num_parts (int): of the batch of a process.

        Raises:
            ValueError: if the batch cannot be divided among the processes and parts.
        """
        world_size = comm.get_world_size()
        if total_batch_size <= 0 or total_batch_size % (world_size * num_parts):
            parts = f" with SOLVER.ACCUMULATION_PARTS {num_parts}" if num_parts > 1 else ""
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {total_batch_size}, which {world_size} processes{parts} "
                "cannot share equally"
            )
        self._num_parts = num_parts
        self._batch_size = total_batch_size // (world_size * num_parts)
        self._groups = bytes(
            aspect_ratio_grouping and d.get("width", 0) > d.get("height", 0) for d in dataset
        )
        self._dataset = _SeededDataset(MapDataset(DatasetFromList(dataset, copy=False), mapper))
        self._sampler = sampler
        self._num_workers = num_workers
        self.begin_at(0, seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, mapper: Callable[[dict], dict]) -> dict:
        """Sampler, batch size, grouping and workers as in ``build_detection_train_loader``."""
        seed = max(cfg.SEED, 0)
        state = np.random.get_state()
        np.random.seed(_words(_SAMPLER, seed)[1])  # RandomSubsetTrainingSampler draws its subset
        arguments = build_detection_train_loader.from_config(
            cfg, mapper=mapper, dataset=training_records(cfg)
        )
        np.random.set_state(state)
        return {**arguments, "seed": seed, "num_parts": cfg.SOLVER.ACCUMULATION_PARTS}

    def begin_at(self, iteration: int, seed: int) -> None:
        """
        Must be called before the first batch is asked for.

        Args:
            iteration (int): of the optimizer, of the first batch.
            seed (int): of the order of images, the augmentation and the training steps, >= 0.
        """
        self._iteration = iteration
        self._seed = self._dataset.seed = seed
        self._sampler._seed = seed  # no sampler of Detectron2 has a public way

    def __iter__(self) -> Iterator[list]:
        loader = DataLoader(
            self._dataset,
            batch_sampler=itertools.islice(self._plan(), self._iteration * self._num_parts, None),
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
        )
        iterations = itertools.count(self._iteration)
        steps = ((i, k) for i in iterations for k in range(self._num_parts))
        for (iteration, part), batch in zip(steps, loader):
            rank = comm.get_rank() + part * comm.get_world_size()
            _seed_everything(_STEP, self._seed, rank, iteration)
            yield batch

    def _plan(self):
        """Yields for each batch of this process the places in the stream and the indices."""
        parts = [self._plan_of_part(k) for k in range(self._num_parts)]
        return itertools.chain.from_iterable(zip(*parts))

    def _plan_of_part(self, part):
        places = itertools.count(comm.get_rank(), comm.get_world_size())
        stream = zip(places, self._sampler)  # of all parts, by turns
        filling = [], []
        for place, index in itertools.islice(stream, part, None, self._num_parts):
            batch = filling[self._groups[index]]
            batch.append((place, index))
            if len(batch) == self._batch_size:
                yield batch[:]
                batch.clear()


class _SeededDataset(Dataset):
    """Examples by (place in the stream, index)."""

    def __init__(self, examples):
        self.examples = examples
        self.seed = 0

    def __getitem__(self, place_and_index):
        place, index = place_and_index
        _seed_everything(_EXAMPLE, self.seed, place)
        return self.examples[index]


def _seed_everything(*key):
    """Seed Python, NumPy and PyTorch, on all devices, from numbers >= 0."""
    words = _words(*key)
    random.seed(words[0])
    np.random.seed(words[1])
    torch.manual_seed(words[2])


def _words(*key):
    return np.random.SeedSequence(key).generate_state(3).tolist()
