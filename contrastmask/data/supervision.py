"""Counting which classes of a dataset have masks."""

import difflib
from dataclasses import dataclass
from typing import Sequence, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from .segmentation import has_usable_mask

__all__ = ["MaskCounts", "class_names_of", "count_masks", "mask_counts_of"]


@dataclass(frozen=True)
class MaskCounts:
    """Numbers of instances per class, crowds left out.

    Attributes:
        instances: all instances, by contiguous class id.
        masks: those with a usable mask.
        rle_masks: those whose mask is an RLE.
    """

    instances: Tuple[int, ...]
    masks: Tuple[int, ...]
    rle_masks: Tuple[int, ...]


def count_masks(dataset_dicts: Sequence[dict], num_classes: int) -> MaskCounts:
    """Count instances and masks in dicts of Detectron2's dataset format."""
    instances, masks, rle_masks = ([0] * num_classes for _ in range(3))
    for dataset_dict in dataset_dicts:
        for annotation in dataset_dict.get("annotations", ()):
            if annotation.get("iscrowd", 0):
                continue
            category = annotation["category_id"]
            segmentation = annotation.get("segmentation")
            instances[category] += 1
            if has_usable_mask(segmentation):
                masks[category] += 1
                rle_masks[category] += isinstance(segmentation, dict)
    return MaskCounts(tuple(instances), tuple(masks), tuple(rle_masks))


def class_names_of(dataset_name: str) -> Tuple[str, ...]:
    """Class names of a registered dataset by contiguous id; loads it if it has not told them."""
    if dataset_name not in DatasetCatalog:
        close = difflib.get_close_matches(dataset_name, DatasetCatalog.list(), n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(
            f"DATASETS.TRAIN, DATASETS.TEST: unknown dataset '{dataset_name}'; {hint}Your own have "
            "their names from DATASETS.COCO_FORMAT"
        )
    metadata = MetadataCatalog.get(dataset_name)
    if not hasattr(metadata, "thing_classes"):
        DatasetCatalog.get(dataset_name)  # COCO-format datasets learn their classes when loaded
    names = metadata.get("thing_classes")
    if names is None:
        raise ValueError(
            f"Dataset '{dataset_name}' has no 'thing_classes' in its metadata: ContrastMask needs "
            "the class names"
        )
    return tuple(names)


def mask_counts_of(dataset_name: str) -> MaskCounts:
    """:class:`MaskCounts` of a registered dataset; kept in its metadata after the first time."""
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("mask_counts") is None:
        dataset_dicts = DatasetCatalog.get(dataset_name)
        metadata.mask_counts = count_masks(dataset_dicts, len(class_names_of(dataset_name)))
    return metadata.mask_counts
