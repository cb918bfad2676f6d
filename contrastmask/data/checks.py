"""What can be known before training is said before training: config and data against each other."""

import logging
from typing import List, Optional, Sequence, Tuple

from detectron2.data import DatasetCatalog
from detectron2.utils.logger import log_first_n
from tabulate import tabulate

from .class_split import ROLES
from .coco_format import Annotations
from .datasets import annotations_of, class_names_of, describe, model_class_names
from .images import ImageFileError, ImageReader, read_headers
from .masks import has_usable_mask
from .reading_report import names
from .supervision import (
    MaskCounts,
    class_split_from_config,
    mask_counts_of,
    why_there_is_no_mask,
)

__all__ = ["check_classes", "check_image_files", "check_supervision", "check_test_data"]

logger = logging.getLogger(__name__)


def check_classes(cfg, dataset_names: Optional[Sequence[str]] = None) -> None:
    """Classes are matched by name. Log what only the model, or only a dataset, has.

    Args:
        cfg (CfgNode):
        dataset_names: registered datasets; None for all of DATASETS.TRAIN and DATASETS.TEST.

    Raises:
        ValueError: if NUM_CLASSES is not the number of the model's classes, or a dataset has none
            of them.
    """
    model_names = model_class_names(cfg)
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if num_classes != len(model_names):
        source = "DATASETS.CLASS_NAMES" if cfg.DATASETS.CLASS_NAMES else ""
        source = source or " and ".join(map(describe, cfg.DATASETS.TRAIN))
        raise ValueError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}, but {source} has {len(model_names)} "
            f"classes. Set MODEL.ROI_HEADS.NUM_CLASSES {len(model_names)}, or 0 to take it from "
            "the data"
        )
    if dataset_names is None:
        dataset_names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for dataset_name in dataset_names:
        own_names, dataset = class_names_of(dataset_name), describe(dataset_name)
        unknown = [x for x in own_names if x not in model_names]
        missing = [x for x in model_names if x not in own_names]
        if len(unknown) == len(own_names):
            raise ValueError(
                f"Dataset {dataset} has none of the model's classes. Its classes are "
                f"{names(own_names)}; those of the model are {names(model_names)}"
            )
        if unknown:
            _log_once(
                logging.WARNING,
                f"{dataset} has classes that the model does not have, which are left out: "
                f"{names(unknown)}",
            )
        if missing:
            _log_once(
                logging.INFO,
                f"{dataset} does not have these classes of the model: {names(missing)}",
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
    split = class_split_from_config(cfg)
    counts = _sum_counts(datasets, split.class_names)
    described = " and ".join(describe(name) for name in datasets)
    if not any(counts.instances):
        num_crowds = sum(
            bool(x.get("iscrowd", 0))
            for name in datasets
            for record in DatasetCatalog.get(name)
            for x in record.get("annotations", ())
        )
        reason = f": all {num_crowds} annotations are crowds (iscrowd 1)" if num_crowds else ""
        remedy = ". If these are objects, set DATASETS.CROWDS objects" if num_crowds else ""
        raise ValueError(
            f"DATASETS.TRAIN: {described} have no instance to learn from{reason}{remedy}"
        )
    if cfg.MODEL.MASK_ON:
        if not any(counts.masks[i] for i in split.base):
            others = [split.class_names[i] for i, n in enumerate(counts.masks) if n]
            reason = (
                f"{sum(counts.masks)} masks belong to {names(others)}"
                if others
                else why_there_is_no_mask(datasets)
            )
            raise ValueError(
                f"No instance of a base class has a mask in {described}: {reason}. "
                f"DATASETS.BASE_CLASSES stands for {names(split.base_names)}"
            )
        rle_classes = [split.class_names[i] for i in split.base if counts.rle_masks[i]]
        if rle_classes and cfg.INPUT.MASK_FORMAT == "polygon":
            raise ValueError(
                f"Some masks in {described} are RLEs (classes {names(rle_classes)}), which "
                "INPUT.MASK_FORMAT 'polygon' cannot take. Set INPUT.MASK_FORMAT bitmask"
            )
    without = [split.class_names[i] for i in split.base if not counts.masks[i]]
    if without:
        _log_once(
            logging.WARNING,
            f"{len(without)} base classes have no mask in {described}: {names(without)}",
        )
    rows = []
    for role in ROLES:
        ids = split.with_role(role)
        rows.append([role, len(ids)])
        for numbers in (counts.instances, counts.masks):
            rows[-1].append(sum(numbers[i] for i in ids))
        rows[-1].append(sum(counts.masks[i] for i in ids if role == "base"))
    headers = ["role", "classes", "instances", "with a mask", "masks learned from"]
    table = tabulate(rows, headers=headers, tablefmt="pipe")
    _log_once(logging.INFO, f"Supervision in {described}:\n{table}")


def check_test_data(cfg) -> None:
    """Log what cannot be evaluated on DATASETS.TEST, and why.

    Raises:
        ValueError: if a dataset has annotations, and none of them counts.
    """
    for name in cfg.DATASETS.TEST:
        annotations = [
            x for record in DatasetCatalog.get(name) for x in record.get("annotations", ())
        ]
        objects = [x for x in annotations if not x.get("iscrowd", 0)]
        if annotations and not objects:
            raise ValueError(
                f"{describe(name)} in DATASETS.TEST has no object to evaluate with: all "
                f"{len(annotations)} annotations are crowds (iscrowd 1). CVAT and V7 mark drawn "
                "masks in this way: if these are objects, set DATASETS.CROWDS objects"
            )
        if not cfg.MODEL.MASK_ON or not objects:
            continue
        if not any(has_usable_mask(x.get("segmentation")) for x in objects):
            _log_once(
                logging.WARNING,
                f"Masks cannot be evaluated on {describe(name)}, only boxes: "
                f"{why_there_is_no_mask([name])}",
            )


def check_image_files(annotations: Annotations, reader: ImageReader) -> List[dict]:
    """Compare the headers of all image files with the annotation file, unless that was done before
    and found no error.

    Args:
        annotations: what was read. Findings go to its report.
        reader: that images are read with later.

    Returns:
        list[dict]: the records whose image can be used, sizes that are off by a pixel set right.

    Raises:
        AnnotationFileError: for an image that cannot be used, if the report raises errors.
    """
    report, usable, wanted = annotations.report, [], (reader.gray_range, reader.max_pixels)
    if annotations.checked_for == wanted:
        return annotations.records
    files = list(dict.fromkeys(x["file_name"] for x in annotations.records))
    headers = dict(zip(files, read_headers(files)))
    shared = {}
    for record in annotations.records:
        header, where = headers[record["file_name"]], f"image {record['image_id']!r}"
        is_read = not isinstance(header, ImageFileError)
        problem = reader.problem_of(header) if is_read else str(header)
        if problem:
            value = f"{record['file_name']}: {problem}" if is_read else problem
            report.error("image file that cannot be used", where, value)
            continue
        size = record["height"], record["width"]
        is_turned = header.orientation != 1
        if header.size != size and _is_rounded(header.size, record):
            report.repaired("height or width off by a pixel, taken from the image file", where)
            record["height"], record["width"] = header.size
        elif header.size != size:
            hint = " (its EXIF orientation turns it)" if is_turned else ""
            report.error(
                "image file of another size than the annotations say (width x height). If it is "
                "the one that they were made on, take 'height' and 'width' out of its entry",
                where,
                f"{record['file_name']}: {header.size[1]} x {header.size[0]}{hint}, not "
                f"{size[1]} x {size[0]}",
            )
            continue
        if is_turned:
            report.warn(
                "image turned by its EXIF orientation: annotations have to fit the turned image",
                where,
            )
        if shared.setdefault(record["file_name"], where) != where:
            report.warn("image file that several images share", where)
        usable.append(record)
    if len(usable) == len(annotations.records):
        annotations.checked_for = wanted
    return usable


def _is_rounded(size: Tuple[int, int], record: dict) -> bool:
    """Whether a record says another size by rounding only, and has no mask that depends on it."""
    has_rle = any(isinstance(x.get("segmentation"), dict) for x in record["annotations"])
    differences = size[0] - record["height"], size[1] - record["width"]
    return max(map(abs, differences)) <= 1 and not has_rle


def check_all(cfg) -> None:
    """Everything that train_net.py checks before it builds a model.

    Raises:
        ValueError: naming the file, the key or the class, and what to do.
    """
    check_classes(cfg)
    check_supervision(cfg)
    check_test_data(cfg)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        annotations = annotations_of(name)
        if annotations is not None:
            check_image_files(annotations, ImageReader.from_config(cfg))


def _sum_counts(dataset_names: Sequence[str], class_names: Sequence[str]) -> MaskCounts:
    """Counts of several datasets, by the class ids of the model."""
    sums = [[0] * len(class_names) for _ in range(3)]
    index = {name: i for i, name in enumerate(class_names)}
    for dataset_name in dataset_names:
        counts = mask_counts_of(dataset_name)
        for i, name in enumerate(class_names_of(dataset_name)):
            if name in index:
                for total, numbers in zip(sums, (counts.instances, counts.masks, counts.rle_masks)):
                    total[index[name]] += numbers[i]
    return MaskCounts(*map(tuple, sums))


def _log_once(level: int, text: str) -> None:
    log_first_n(level, text, name=__name__, key="message")
