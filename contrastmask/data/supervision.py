"""Who has masks to learn from: counts, and the base and novel classes of a config."""

from collections import Counter
from dataclasses import dataclass
from typing import FrozenSet, Sequence, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from .class_split import ClassSplit, is_from_annotations, resolve_class_split
from .coco_annotations import NO_PIXEL, NO_POLYGON, ONLY_BOX
from .datasets import (
    annotations_of,
    class_names_of,
    describe,
    is_in_memory,
    model_class_names,
)
from .masks import has_usable_mask

__all__ = [
    "MaskCounts",
    "class_split_from_config",
    "count_masks",
    "mask_counts_of",
    "why_there_is_no_mask",
]


def class_split_from_config(cfg) -> ClassSplit:
    """The base and novel classes of a model, by DATASETS.BASE_CLASSES and NOVEL_CLASSES.

    "auto" and "instances" read the annotations of DATASETS.TRAIN. With MODEL.MASK_ON False there
    may be no base class.
    """
    class_names = model_class_names(cfg)
    base = cfg.DATASETS.BASE_CLASSES
    masked, why_no_masks = None, ""
    if is_from_annotations(base, class_names):
        masked = _masked_class_names(cfg.DATASETS.TRAIN)
        why_no_masks = "" if masked else why_there_is_no_mask(cfg.DATASETS.TRAIN)
    return resolve_class_split(
        class_names,
        base,
        cfg.DATASETS.NOVEL_CLASSES,
        masked_classes=masked,
        why_no_masks=why_no_masks,
        needs_base=cfg.MODEL.MASK_ON,
    )


@dataclass(frozen=True)
class MaskCounts:
    """Numbers of instances per class, crowds left out.

    Attributes:
        instances: all instances, by contiguous class id of the dataset.
        masks: those with a usable mask.
        rle_masks: those whose mask is an RLE.
    """

    instances: Tuple[int, ...]
    masks: Tuple[int, ...]
    rle_masks: Tuple[int, ...]


def mask_counts_of(dataset_name: str) -> MaskCounts:
    """:class:`MaskCounts` of a registered dataset; kept in its metadata after the first time."""
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("mask_counts") is None or is_in_memory(dataset_name):
        records = DatasetCatalog.get(dataset_name)  # drops the counts if its file has changed
    if metadata.get("mask_counts") is None:
        metadata.mask_counts = count_masks(records, len(class_names_of(dataset_name)))
    return metadata.mask_counts


def count_masks(records: Sequence[dict], num_classes: int) -> MaskCounts:
    instances, masks, rle_masks = ([0] * num_classes for _ in range(3))
    for record in records:
        for annotation in record.get("annotations", ()):
            if annotation.get("iscrowd", 0):
                continue
            category = annotation["category_id"]
            segmentation = annotation.get("segmentation")
            instances[category] += 1
            if has_usable_mask(segmentation):
                masks[category] += 1
                rle_masks[category] += isinstance(segmentation, dict)
    return MaskCounts(tuple(instances), tuple(masks), tuple(rle_masks))


def _masked_class_names(dataset_names: Sequence[str]) -> FrozenSet[str]:
    names = set()
    for dataset_name in dataset_names:
        class_names = class_names_of(dataset_name)
        counts = mask_counts_of(dataset_name)
        names.update(name for name, count in zip(class_names, counts.masks) if count)
    return frozenset(names)


def why_there_is_no_mask(dataset_names: Sequence[str]) -> str:
    """
    Args:
        dataset_names: registered datasets in which no instance has a mask that counts.

    Returns:
        str: how many masks there are, why they do not count, and what to do.
    """
    num_crowds, why = 0, Counter()
    for name in dataset_names:
        for record in DatasetCatalog.get(name):
            for x in record.get("annotations", ()):
                num_crowds += bool(x.get("iscrowd", 0)) and has_usable_mask(x.get("segmentation"))
        annotations = annotations_of(name)
        if annotations is not None:
            report = annotations.report
            why.update({what: len(report.where_of(what)) for what in (NO_PIXEL, NO_POLYGON)})
            why[ONLY_BOX] += report.counts[ONLY_BOX]
    where = " and ".join(map(describe, dataset_names))
    if num_crowds:
        return (
            f"all {num_crowds} masks in {where} are crowds (iscrowd 1), which are left out. CVAT "
            "and V7 mark drawn masks in this way: if these are objects, set DATASETS.CROWDS objects"
        )
    remedy = "To train on boxes alone, set MODEL.MASK_ON False"
    reasons = [f"{number} x {what}" for what, number in why.items() if number]
    if reasons:
        return f"none of the segmentations in {where} counts: {'; '.join(reasons)}. {remedy}"
    return f"no annotation in {where} has a mask. {remedy}"
