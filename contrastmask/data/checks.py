"""Checks of the configuration against the data, for before training."""

import logging
from typing import List, Optional, Sequence

from detectron2.data import MetadataCatalog
from detectron2.utils.logger import log_first_n
from tabulate import tabulate

from .class_split import BASE_KEY, class_split_from_config
from .supervision import MaskCounts, class_names_of, mask_counts_of

__all__ = ["check_num_classes", "check_supervision"]

_NUM_NAMES = 10


def check_num_classes(cfg, dataset_names: Optional[Sequence[str]] = None) -> None:
    """Raise ValueError unless NUM_CLASSES fits the datasets and these have the same classes.

    Args:
        dataset_names: registered datasets; None for all of DATASETS.TRAIN and DATASETS.TEST.
    """
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if dataset_names is None:
        dataset_names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    first_names = None
    for dataset_name in dataset_names:
        names = class_names_of(dataset_name)
        if len(names) != num_classes:
            raise ValueError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}, but dataset "
                f"{_describe(dataset_name)} has {len(names)} classes. Set "
                f"MODEL.ROI_HEADS.NUM_CLASSES {len(names)}"
            )
        if first_names is None:
            first_dataset, first_names = dataset_name, names
        elif names != first_names:
            index = next(i for i, (a, b) in enumerate(zip(names, first_names)) if a != b)
            raise ValueError(
                f"Class {index} is '{first_names[index]}' in dataset {_describe(first_dataset)} "
                f"but '{names[index]}' in {_describe(dataset_name)}. Classes are numbered by "
                "ascending category id; all datasets must agree"
            )


def check_supervision(cfg) -> None:
    """Log who has masks in DATASETS.TRAIN.

    Raises:
        ValueError: if there is nothing to learn from, or no mask, or if masks are RLEs and
            INPUT.MASK_FORMAT is "polygon".
    """
    datasets = list(cfg.DATASETS.TRAIN)
    if not datasets:
        raise ValueError("DATASETS.TRAIN names no dataset")
    split = class_split_from_config(cfg, datasets[0])
    counts = _sum_counts([mask_counts_of(name) for name in datasets])
    described = ", ".join(_describe(name) for name in datasets)
    if not any(counts.instances):
        raise ValueError(f"DATASETS.TRAIN: {described} have no annotated instance")

    if cfg.MODEL.MASK_ON:
        if not any(counts.masks[i] for i in split.base):
            raise ValueError(
                f"No instance of a base class has a mask in {described}. {BASE_KEY} stands for: "
                f"{_shorten(split.base_names)}"
            )
        rle_classes = [split.class_names[i] for i in split.base if counts.rle_masks[i]]
        if rle_classes and cfg.INPUT.MASK_FORMAT == "polygon":
            raise ValueError(
                f"Some masks in {described} are RLEs (classes {_shorten(rle_classes)}), which "
                "INPUT.MASK_FORMAT 'polygon' cannot take. Set INPUT.MASK_FORMAT bitmask"
            )
    without = [split.class_names[i] for i in split.base if not counts.masks[i]]
    if without:
        log_first_n(
            logging.WARNING,
            f"{len(without)} base classes have no mask in {described}: {_shorten(without)}",
            name=__name__,
            key="message",
        )
    rows = []
    for role in ("base", "novel", "unused"):
        ids = getattr(split, role)
        rows.append([role, len(ids)])
        for numbers in (counts.instances, counts.masks):
            rows[-1].append(sum(numbers[i] for i in ids))
        rows[-1].append(sum(counts.masks[i] for i in ids if i in split.base))
    headers = ["role", "classes", "instances", "with a mask", "masks learnt from"]
    log_first_n(
        logging.INFO,
        f"Supervision in {described}:\n" + tabulate(rows, headers=headers, tablefmt="pipe"),
        name=__name__,
        key="message",
    )


def _sum_counts(counts: List[MaskCounts]) -> MaskCounts:
    def total(field):
        return tuple(map(sum, zip(*(getattr(c, field) for c in counts))))

    return MaskCounts(total("instances"), total("masks"), total("rle_masks"))


def _describe(dataset_name: str) -> str:
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    # tools/inspect_dataset.py has no other name than the path.
    has_path = json_file not in (None, dataset_name)
    return f"'{dataset_name}' ({json_file})" if has_path else f"'{dataset_name}'"


def _shorten(names) -> str:
    return ", ".join(names[:_NUM_NAMES]) + (", ..." if len(names) > _NUM_NAMES else "")
