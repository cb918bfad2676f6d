"""Losses on validation images while a model trains, without an effect on the training."""

import logging
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    trivial_batch_collator,
)
from detectron2.data.samplers import InferenceSampler
from detectron2.engine import HookBase
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import BaseKeypointRCNNHead, ROIHeads
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.utils.data import DataLoader

from ..data import ContrastMaskDatasetMapper, SkipUnreadable, test_records

logger = logging.getLogger(__name__)

PREFIX = "val/"
# What returns losses instead of predictions when it trains.
_LOSS_MODULES = (GeneralizedRCNN, RPN, ROIHeads, BaseKeypointRCNNHead)


class ValidationLosses(HookBase):
    """
    Whenever there is an evaluation: the mean losses on images of ``DATASETS.TEST``, as "val/..." in
    the event storage of every process. Annotations are used as in training, so masks of novel
    classes are never read. Images are those of evaluation, in batches as large as in training; norm
    layers and dropout work as in inference. The same RoIs and pixels are sampled each time as far
    as boxes are the same. Neither the model nor the random numbers of the training change.
    """

    def __init__(self, cfg: CfgNode, model: torch.nn.Module):
        """
        Args:
            cfg (CfgNode): ``TEST.VALIDATION_LOSS_IMAGES`` is the number of images.
            model (nn.Module): not wrapped for data parallel training.

        Raises:
            ValueError: if there is no image with an annotation.
        """
        self._model = model
        self._period = cfg.TEST.EVAL_PERIOD
        self._batch_size = cfg.SOLVER.IMS_PER_BATCH // (
            comm.get_world_size() * cfg.SOLVER.ACCUMULATION_PARTS
        )
        self._num_workers = cfg.DATALOADER.NUM_WORKERS
        mapper = ContrastMaskDatasetMapper.from_config(cfg, is_train=True)
        evaluated = ContrastMaskDatasetMapper.from_config(cfg, is_train=False)
        mapper.update(augmentations=evaluated["augmentations"], recompute_boxes=False)
        records = _annotated_records(cfg, cfg.TEST.VALIDATION_LOSS_IMAGES)
        self._examples = MapDataset(
            DatasetFromList(records, copy=False),
            SkipUnreadable(ContrastMaskDatasetMapper(**mapper)),
        )

    def after_step(self):
        next_iter = self.trainer.iter + 1
        is_evaluated = self._period > 0 and next_iter % self._period == 0
        if is_evaluated and next_iter != self.trainer.max_iter:
            self._measure()

    def after_train(self):
        if self.trainer.iter >= self.trainer.max_iter:
            self._measure()

    def _measure(self):
        storage = self.trainer.storage
        with _without_a_trace(self._model), EventStorage(storage.iter):
            sums, num_images = self._sums()
        results = comm.all_gather((sums, num_images))
        num_images = sum(num for _, num in results)
        if num_images == 0:
            logger.error("No image for the validation losses could be read")
            return
        means = defaultdict(float)
        for name, total in (x for sums, _ in results for x in sums.items()):
            means[name] += total / num_images
        for name, value in {**means, "total_loss": sum(means.values())}.items():
            storage.put_scalar(PREFIX + name, value, smoothing_hint=False)

    def _sums(self):
        """Sums over the images of this process, and their number."""
        sampler = InferenceSampler(len(self._examples))
        loader = DataLoader(
            self._examples,
            batch_size=self._batch_size,
            sampler=sampler,
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
        )
        sums, num_images = defaultdict(float), 0
        for first, batch in zip(list(sampler)[:: self._batch_size], loader):
            batch = [x for x in batch if "problem" not in x]
            if batch:
                torch.manual_seed(first)
                for name, value in self._model(batch).items():
                    sums[name] += value.item() * len(batch)
                num_images += len(batch)
        return sums, num_images


def _annotated_records(cfg, number):
    """Images of ``DATASETS.TEST``, evenly spread; all of them if `number` is negative."""
    records = [x for name in cfg.DATASETS.TEST for x in test_records(cfg, name)]
    records = [x for x in records if "annotations" in x]
    if records and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    if not records:
        raise ValueError(
            "TEST.VALIDATION_LOSS_IMAGES needs annotations, and DATASETS.TEST "
            f"{', '.join(cfg.DATASETS.TEST) or '(none)'} has no image with an object"
        )
    if not 0 < number < len(records):
        return records
    return [records[i * len(records) // number] for i in range(number)]


@contextmanager
def _without_a_trace(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model gives losses; afterwards all is as before, also random numbers."""
    modes = {module: module.training for module in model.modules()}
    states = random.getstate(), np.random.get_state()
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            model.eval()
            for module in modes:
                if isinstance(module, _LOSS_MODULES):
                    module.training = True
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        random.setstate(states[0])
        np.random.set_state(states[1])
