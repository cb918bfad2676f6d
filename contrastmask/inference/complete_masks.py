"""From an annotation file with boxes to the same file with masks."""

import logging
import os
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from typing import Dict, List, Optional, Sequence, Set, TextIO, Tuple

import numpy as np
import pycocotools.mask as mask_util
import torch.distributed as dist
from detectron2.data import detection_utils as utils
from detectron2.utils import comm
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..atomic_files import write_json
from ..data import ClassSplit, read_annotations
from ..data.coco_format import load_json, log_reading
from ..data.datasets import reading_options, to_model_classes
from ..data.images import ImageReader
from ..data.masks import is_nothing, to_rle
from ..data.reading_report import names as shorten
from ..predictor import ModelInput, Predictor, encode, masks_for_boxes
from .partial_results import (
    append_masks,
    open_partial_results,
    partial_paths,
    read_partial_results,
    run_identity,
)
from .polygons import join_polygons, mask_to_polygons, polygon_box

__all__ = [
    "GIVEN_BOX_KEY",
    "MASK_FORMATS",
    "SCORE_KEY",
    "MaskCompletion",
    "complete_masks",
    "read_masks",
]

logger = logging.getLogger(__name__)

# Key of an annotation for the score of its predicted mask.
SCORE_KEY = "mask_score"
# Key for the box that the mask was predicted for, where "bbox" becomes that of the polygons.
GIVEN_BOX_KEY = "given_bbox"
# How masks are written. "one-polygon" has no more than one polygon for each object.
MASK_FORMATS = ("rle", "polygon", "one-polygon")
# Processes may wait so long for the one with the most work, or for the first one to read a file.
_PATIENCE = timedelta(days=30)
_NUM_EXAMPLES = 10
_GROUPS = ("base", "novel", "unused", "all")


@dataclass
class MaskCompletion:
    """What became of the annotations of a file. Keys are their indices in it.

    Attributes:
        annotations: all of them, as they are in the output.
        predicted: RLE of each mask that was written.
        empty: annotations for which the model predicted no pixel; they stay as they are.
        num_kept: annotations that had a mask.
        not_understood: annotations with a segmentation that is no usable mask; they keep it.
        num_left_out: crowds, annotations marked "ignore", boxes without area in the image.
        unknown_classes: names of classes that the model does not have; they stay as they are.
        unreadable: file names of images and why they were skipped.
        overlaps: IoU of each mask that became polygons with its polygons.
        num_slits: holes and parts that are joined to an outline, in polygons.
        num_rewritten: masks of the file that became other polygons, the same to the pixel.
    """

    annotations: List[dict]
    predicted: Dict[int, dict] = field(default_factory=dict)
    empty: List[int] = field(default_factory=list)
    num_kept: int = 0
    not_understood: List[int] = field(default_factory=list)
    num_left_out: int = 0
    unknown_classes: List[str] = field(default_factory=list)
    unreadable: List[Tuple[str, str]] = field(default_factory=list)
    overlaps: List[float] = field(default_factory=list)
    num_slits: int = 0
    num_rewritten: int = 0

    def ids(self, indices: Sequence[int]) -> str:
        """Ids of some annotations, for a message."""
        shown = [str(self.annotations[i].get("id")) for i in indices[:_NUM_EXAMPLES]]
        return ", ".join(shown) + (", ..." if len(indices) > _NUM_EXAMPLES else "")

    def compare(self, true_masks: Dict[object, dict], class_split: ClassSplit) -> str:
        """
        Args:
            true_masks: from :func:`read_masks`; annotations are matched by "id".
            class_split: gives the roles of classes, which are matched by name.

        Returns:
            A table of the mean IoU of the predicted masks, and of boxes as masks.

        Raises:
            ValueError: if a true mask is one of an image of another size.
        """
        rows = {group: [] for group in _GROUPS}
        num_without = 0
        for index in sorted([*self.predicted, *self.empty]):
            annotation_id = self.annotations[index].get("id")
            true = true_masks.get(annotation_id)
            if true is None:
                num_without += 1
                continue
            mask, iou = self.predicted.get(index), 0.0
            size = true["mask"]["size"]
            if mask is not None:
                if list(mask["size"]) != list(size):
                    raise ValueError(
                        f"annotation {annotation_id!r}: its image has the size {mask['size']} "
                        f"(height, width), and {list(size)} in the file to compare with"
                    )
                iou = float(mask_util.iou([mask], [true["mask"]], [0])[0, 0])
            box = mask_util.frPyObjects(np.array([true["bbox"]], dtype=np.float64), *size)
            box_iou = float(mask_util.iou(box, [true["mask"]], [0])[0, 0])
            names = class_split.class_names
            known = true["class_name"] in names
            role = class_split.role(names.index(true["class_name"])) if known else "unused"
            for group in (role, "all"):
                rows[group].append((iou, box_iou))
        table = tabulate(
            [[k, len(v), *np.mean(v, axis=0)] for k, v in rows.items() if v],
            headers=["classes", "boxes", "mean IoU of masks", "of box masks"],
            tablefmt="pipe",
            floatfmt=".3f",
        )
        without = f"\n{num_without} annotations have no mask to compare with" if num_without else ""
        return table + without


def complete_masks(
    predictor: Predictor,
    json_file: str,
    image_root: str,
    output: str,
    *,
    batch_size: int = 4,
    num_workers: int = 0,
    replace: bool = False,
    mask_format: str = "rle",
    tolerance: float = 1.0,
) -> Optional[MaskCompletion]:
    """Give every box-only annotation of a COCO-format file the mask predicted for its box.

    These annotations get a "segmentation" and a "mask_score" (mean probability inside the mask).
    Beside a compressed RLE all other values stay, "area" included. Beside polygons, "area" (pixels)
    and "bbox" become those of the polygons, and "given_bbox" keeps the box. A file of polygons has
    no RLE: the masks that it had before become polygons that are the same to the pixel. What
    labeling tools insist on is added where missing: "info", "licenses", "iscrowd" 0, and
    "segmentation" [] for no mask.

    The processes of PyTorch's default process group, if there is one, share the images, batch by
    batch. The output does not depend on their number.

    Each process keeps the masks of finished images in a file beside `output` (".partial.jsonl",
    ".partial-1.jsonl", ...). An interrupted run goes on from all of them, with any number of
    processes; they are removed when all images are done. Their first line names the model, the
    config and the annotation file.

    Args:
        predictor: the model. Categories of the file are matched with its classes by name.
        json_file: annotation file.
        image_root: folder of its images.
        output: file to write.
        batch_size: images at a time.
        num_workers: processes that read images, for each process.
        replace: also predict masks for the annotations that have a segmentation.
        mask_format: how masks are written: "rle", "polygon", or "one-polygon", which joins the
            parts of a mask by slits without width.
        tolerance: of polygons, in pixels; see :func:`.polygons.mask_to_polygons`.

    Returns:
        MaskCompletion, or None in another process than the first.

    Raises:
        AnnotationFileError: if the file is not sound, or the image folder is missing.
        ValueError: for a file without any class of the model, a model without masks, an output that
            is the input, or the partial results of another run.
    """
    if not predictor.cfg.MODEL.MASK_ON:
        raise ValueError("MODEL.MASK_ON is False: this model predicts no masks")
    if mask_format not in MASK_FORMATS:
        raise ValueError(f"mask_format is {mask_format!r}; it has to be one of {MASK_FORMATS}")
    if os.path.isdir(output):
        raise ValueError(f"The output has to be a file, and {output} is a folder")
    if os.path.exists(output) and os.path.samefile(json_file, output):
        raise ValueError(f"The output file is the annotation file itself: {output}")
    options = reading_options(predictor.cfg)
    content = load_json(json_file)  # to be written as it is, but for the masks
    annotations = read_annotations(
        json_file, image_root, options=options, needs_images=False, content=content
    )
    log_reading(annotations)
    completion = MaskCompletion(content["annotations"])
    records = _records(annotations, predictor.class_names, replace, completion)
    _warn(completion)
    given = annotations.records if mask_format != "rle" and comm.is_main_process() else []
    del annotations  # with its masks, which polygons need again
    if not comm.is_main_process():
        content = completion = None

    identity = run_identity(predictor, json_file, replace)
    done: Set[int] = set()
    if comm.is_main_process():
        os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
        done = {index for index, _ in read_partial_results(output, identity)}
    others = _Others()
    done = others.receive(done)  # no process writes before this
    with open_partial_results(output, identity, comm.get_rank()) as journal:
        unreadable = _predict(predictor, records, done, journal, batch_size, num_workers)
    unreadable = others.collect(unreadable)
    if not comm.is_main_process():
        return None

    completion.unreadable = sorted(unreadable)
    masks = dict(read_partial_results(output, identity))
    for index, (segmentation, score) in sorted(masks.items()):
        if score == 0:
            completion.empty.append(index)
            continue
        annotation = completion.annotations[index]
        if mask_format == "rle":
            annotation["segmentation"] = segmentation
        else:
            is_one = mask_format == "one-polygon"
            segmentation = _write_polygons(
                annotation, segmentation, tolerance, is_one, options.box_format, completion
            )
        annotation[SCORE_KEY] = score
        completion.predicted[index] = segmentation
    if completion.empty:
        logger.warning(
            f"No pixel was predicted for {len(completion.empty)} annotations, which stay as they "
            f"are: {completion.ids(completion.empty)}"
        )
    _rewrite_given(given, mask_format == "one-polygon", completion)
    _add_missing_keys(content)
    write_json(output, content)
    partial = partial_paths(output)
    if completion.unreadable:
        logger.warning(
            f"{len(completion.unreadable)} images were skipped. To do them later, make them "
            "readable and run the same command again: the other images are kept in "
            f"{', '.join(partial)}"
        )
    else:
        for path in partial:
            os.remove(path)
    return completion


class _Others:
    """What the first process and the other ones tell each other, however long that takes."""

    def __init__(self):
        self._number = comm.get_world_size()
        if self._number > 1:
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def receive(self, value):
        """The value of the first process."""
        values = [value]
        if self._number > 1:
            dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def collect(self, values: list) -> list:
        """The values of all processes, in the first one."""
        if self._number == 1:
            return values
        gathered = [None] * self._number if comm.is_main_process() else None
        dist.gather_object(values, gathered, dst=0, group=self._group)
        return list(chain(*gathered or ()))


def read_masks(json_file: str) -> Dict[object, dict]:
    """
    Args:
        json_file: annotation file in COCO format.

    Returns:
        Annotation id -> "mask" (RLE), "bbox" (XYWH) and "class_name", of the annotations that have
        a mask.

    Raises:
        AnnotationFileError: if the file is not sound.
    """
    annotations = read_annotations(json_file)
    return {
        x["id"]: {
            "mask": to_rle(x["segmentation"], record["height"], record["width"]),
            "bbox": x["bbox"],
            "class_name": annotations.class_names[x["category_id"]],
        }
        for record in annotations.records
        for x in record["annotations"]
        if "segmentation" in x and not x["iscrowd"]
    }


def _records(annotations, class_names, replace, completion) -> List[dict]:
    """Images with the annotations to predict masks for, in classes of the model."""
    known = [x for x in annotations.class_names if x in class_names]
    if not known:
        raise ValueError(
            f"{annotations.path} has none of the model's classes. Its classes are "
            f"{shorten(annotations.class_names)}; those of the model are {shorten(class_names)}"
        )
    completion.unknown_classes = [x for x in annotations.class_names if x not in class_names]
    records, num_seen = [], 0
    of_model = to_model_classes(annotations.records, annotations.class_names, class_names)
    for record in of_model:
        chosen = []
        for x in record["annotations"]:
            if x["iscrowd"]:
                continue
            num_seen += 1
            given = completion.annotations[x["index"]].get("segmentation")
            if "segmentation" in x and not replace:
                completion.num_kept += 1
            elif not (replace or is_nothing(given) or _is_empty_rle(given)):
                completion.not_understood.append(x["index"])
            else:
                chosen.append((x["index"], x["bbox"], x["category_id"]))
        if chosen:
            indices, boxes, classes = zip(*chosen)
            boxes = np.array(boxes, dtype=np.float64)  # the reader's are all XYWH
            boxes[:, 2:] += boxes[:, :2]
            kept = {k: v for k, v in record.items() if k != "annotations"}
            records.append({**kept, "indices": indices, "boxes": boxes, "classes": classes})
    completion.num_left_out = len(completion.annotations) - num_seen
    return records


def _warn(completion: MaskCompletion) -> None:
    if completion.unknown_classes:
        logger.warning(
            "The model does not have these classes, whose annotations stay as they are: "
            f"{shorten(completion.unknown_classes)}"
        )
    if completion.not_understood:
        logger.warning(
            f"{len(completion.not_understood)} annotations have a segmentation that is no usable "
            f"mask, and keep it (--all replaces it): {completion.ids(completion.not_understood)}"
        )


def _write_polygons(annotation, rle, tolerance, join_parts, box_format, completion) -> dict:
    """Set the values of an annotation that polygons change; returns them as an RLE."""
    polygons, num_slits = mask_to_polygons(mask_util.decode(rle), tolerance, join_parts)
    written = to_rle(polygons, *rle["size"])
    annotation.setdefault(GIVEN_BOX_KEY, annotation.get("bbox"))
    annotation.update(
        segmentation=polygons,
        bbox=polygon_box(polygons, box_format),
        area=float(mask_util.area(written)),
    )
    completion.overlaps.append(float(mask_util.iou([written], [rle], [0])[0, 0]))
    completion.num_slits += num_slits
    return written


def _rewrite_given(records: List[dict], join_parts: bool, completion: MaskCompletion) -> None:
    """Write RLEs of the file as polygons, and with `join_parts` several polygons as one."""
    for record in records:
        for x in record["annotations"]:
            given, size = x.get("segmentation"), (record["height"], record["width"])
            is_rle = isinstance(given, dict)
            several = isinstance(given, list) and len(given) > 1
            if x["index"] in completion.predicted or not (is_rle or join_parts and several):
                continue
            rle = to_rle(given, *size)
            polygons, num_slits = [], 0
            if several:  # the corners that were drawn, unless they overlap
                polygons, num_slits = [join_polygons(given)], len(given) - 1
            if is_rle or mask_util.iou([to_rle(polygons, *size)], [rle], [0])[0, 0] < 1:
                polygons, num_slits = mask_to_polygons(mask_util.decode(rle), 0.0, join_parts)
            completion.annotations[x["index"]]["segmentation"] = polygons
            completion.num_slits += num_slits
            completion.num_rewritten += 1


def _add_missing_keys(content: dict) -> None:
    """Without these keys some importers of COCO files stop (CVAT, Roboflow, VIA)."""
    content.setdefault("info", {})
    content.setdefault("licenses", [])
    for x in content["annotations"]:
        if is_nothing(x.get("segmentation")):
            x["segmentation"] = []
        if is_nothing(x.get("iscrowd")):
            x["iscrowd"] = 0


def _is_empty_rle(segmentation) -> bool:
    """For what the reader took for no mask: whether it is an RLE, which then has no foreground."""
    return isinstance(segmentation, dict) or (
        isinstance(segmentation, list) and any(isinstance(x, dict) for x in segmentation)
    )


class _Images(Dataset):
    """For each index of a record: itself, the model's input or None, why there is none."""

    def __init__(self, cfg, records):
        self._to_input = ModelInput(cfg)
        self._read = ImageReader.from_config(cfg, format="RGB")
        self._records = records

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        record = self._records[index]
        try:
            image = self._read(record["file_name"])
            utils.check_image_size(record, image)
        except ValueError as error:
            return index, None, str(error)
        return index, self._to_input(image), ""


def _predict(
    predictor: Predictor,
    records: List[dict],
    done: Set[int],
    journal: TextIO,
    batch_size: int,
    num_workers: int,
) -> List[Tuple[str, str]]:
    """
    Write the masks that are missing in `done`, indices of annotations, of the images that this
    process has to do.

    Rounding depends on which images a batch holds, so batches are the same for any number of
    processes and after an interruption.

    Returns:
        File names of the images that cannot be used, and why.
    """
    starts = range(0, len(records), batch_size)
    batches = [range(len(records))[i : i + batch_size] for i in starts]
    left = [x for x in batches if not all(done.issuperset(records[i]["indices"]) for i in x)]
    own, unreadable = left[comm.get_rank() :: comm.get_world_size()], []
    num_left, num_own = sum(map(len, left)), sum(map(len, own))
    if num_left < len(records):
        logger.info(f"{len(records) - num_left} images were done before")
    images = DataLoader(
        _Images(predictor.cfg, records),
        batch_sampler=own,
        num_workers=num_workers,
        collate_fn=list,
    )
    with tqdm(total=num_own, unit="image", disable=not comm.is_main_process()) as progress:
        for batch in images:
            for i, model_input, problem in batch:
                if model_input is None:
                    unreadable.append((records[i]["file_name"], problem))
                    logger.warning(f"Skipped {records[i]['file_name']}: {problem}")
            usable = [(records[i], x) for i, x, _ in batch if x is not None]
            for same_size in _groups_of_equal_size(usable):
                records_of_group, inputs = zip(*same_size)
                indices = list(chain.from_iterable(x["indices"] for x in records_of_group))
                if done.issuperset(indices):
                    continue
                masks = masks_for_boxes(
                    predictor.model,
                    encode(predictor.model, list(inputs)),
                    [x["boxes"] for x in records_of_group],
                    [x["classes"] for x in records_of_group],
                )
                append_masks(journal, indices, list(chain.from_iterable(masks)))
            progress.update(len(batch))
    return unreadable


def _groups_of_equal_size(usable):
    """Records with inputs that need no padding in a batch, which would change their masks."""
    groups = defaultdict(list)
    for record, x in usable:
        groups[x["image"].shape].append((record, x))
    return groups.values()
