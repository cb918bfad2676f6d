"""Looking over an annotation file before training: sizes per class, and all problems at once."""

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Dict, List, Tuple

import numpy as np
import pycocotools.mask as mask_util
from PIL import ExifTags, Image
from tqdm import tqdm

from .coco_format import AnnotationFile, AnnotationFileError, missing_image_files
from .images import check_pixel_type
from .segmentation import to_rle

__all__ = ["ClassStatistics", "Inspection", "Problem", "inspect_annotation_file"]

_NUM_EXAMPLES = 5
# A mask fits its box if the sides of its own box differ by at most this from those of the box.
_SLACK_PIXELS = 2
_SLACK_FRACTION = 0.1
# EXIF orientations that swap height and width.
_TURNED = (5, 6, 7, 8)


@dataclass
class ClassStatistics:
    """What one class has in the file; crowds and what the loader leaves out do not count.

    Attributes:
        box_sizes: (width, height) of each instance's box, in pixels.
        mask_areas: area of each mask, in pixels.
        num_instances, num_masks: as the names say.
    """

    box_sizes: List[Tuple[float, float]] = field(default_factory=list)
    mask_areas: List[float] = field(default_factory=list)

    @property
    def num_instances(self) -> int:
        return len(self.box_sizes)

    @property
    def num_masks(self) -> int:
        return len(self.mask_areas)


@dataclass
class Problem:
    """One kind of problem.

    Attributes:
        what: the problem, in words.
        is_error: whether training cannot start, or would stop, because of it.
        where: the entries concerned, each in a few words.
    """

    what: str
    is_error: bool
    where: List[str] = field(default_factory=list)

    def examples(self) -> str:
        shown = "; ".join(self.where[:_NUM_EXAMPLES])
        return shown + ("; ..." if len(self.where) > _NUM_EXAMPLES else "")


@dataclass
class Inspection:
    """Result of :func:`inspect_annotation_file`.

    Attributes:
        class_names: by contiguous id; empty if the categories are not sound.
        statistics: one for each class, in the same order.
        problems: errors first.
        records: the sound part of the file in Detectron2's dataset format.
    """

    class_names: List[str]
    statistics: List[ClassStatistics]
    problems: List[Problem]
    records: List[dict]

    @property
    def errors(self) -> List[Problem]:
        return [problem for problem in self.problems if problem.is_error]


class _Problems:
    """Collects problems by kind."""

    def __init__(self):
        self._kinds: Dict[Tuple[str, bool], Problem] = {}

    def error(self, what: str, where: str = "") -> None:
        self._add(what, True, where)

    def warn(self, what: str, where: str = "") -> None:
        self._add(what, False, where)

    def from_exception(self, error: AnnotationFileError) -> None:
        got = f"got {error.value}" if error.value else ""
        self.error(error.reason, ", ".join(filter(None, [error.entry, got])))

    def _add(self, what, is_error, where):
        problem = self._kinds.setdefault((what, is_error), Problem(what, is_error))
        problem.where.append(where or "the file")

    def sorted(self) -> List[Problem]:
        return sorted(self._kinds.values(), key=lambda p: (not p.is_error, -len(p.where)))


def inspect_annotation_file(json_file: str, image_root: str) -> Inspection:
    """Find everything in a COCO-format file that stops training or deserves a look.

    What is an error, what is a mask and what is left out is decided by the code that loads the
    file for training, one entry at a time, so one bad entry does not hide the others.

    Args:
        json_file (str): path of the annotation file.
        image_root (str): folder of the images. Their headers are read, not their pixels.

    Returns:
        Inspection:
    """
    problems = _Problems()
    try:
        file = AnnotationFile(json_file)
    except AnnotationFileError as error:
        problems.from_exception(error)
        return Inspection([], [], problems.sorted(), [])
    categories = _sound_entries(file, "categories", file.check_category, problems)
    _check_unique(problems, "category name", [c["name"] for c in categories])
    categories = sorted({c["id"]: c for c in categories}.values(), key=lambda c: c["id"])
    images = {x["id"]: x for x in _sound_entries(file, "images", file.check_image, problems)}
    if len({type(image_id) for image_id in images}) > 1:
        problems.error("some image ids are numbers and some are strings")
    readable = _check_images(images.values(), image_root, problems)

    id_map = {category["id"]: i for i, category in enumerate(categories)}
    records = {
        image_id: {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image_id,
            "annotations": [],
        }
        for image_id, image in images.items()
    }
    statistics = [ClassStatistics() for _ in categories]
    _inspect_annotations(file, images, id_map, records, statistics, problems)
    names = [category["name"] for category in categories]
    for name, numbers in zip(names, statistics):
        if numbers.num_instances == 0:
            problems.warn("class without instances", f"'{name}'")
    empty = [repr(i) for i, record in records.items() if not record["annotations"]]
    for image_id in empty:
        problems.warn("image without annotations, left out of training", f"image {image_id}")
    records = [record for image_id, record in records.items() if image_id in readable]
    return Inspection(names, statistics, problems.sorted(), records)


def _sound_entries(file, key, check, problems) -> List[dict]:
    entries = []
    if not file.content[key]:
        problems.error(f"'{key}' is empty")
    for entry in file.content[key]:
        try:
            check(entry)
        except AnnotationFileError as error:
            problems.from_exception(error)
        else:
            entries.append(entry)
    _check_unique(problems, {"categories": "category id", "images": "image id"}[key], entries, "id")
    return entries


def _check_unique(problems, what, values, key=None):
    values = [value[key] for value in values] if key else values
    for value, number in Counter(values).items():
        if number > 1:
            problems.error(f"duplicated {what}", f"{value!r} ({number} times)")


def _check_images(images, image_root, problems) -> set:
    """
    Returns:
        set: ids of the images whose file is there and has the size that the annotations say.
    """
    if not os.path.isdir(image_root):
        problems.error(f"the image folder '{image_root}' does not exist")
        return set()
    readable = {image["id"]: image for image in images}
    for image in missing_image_files(readable.values(), image_root):
        problems.error("missing image file", image["file_name"])
        del readable[image["id"]]
    for image in tqdm(list(readable.values()), desc="Images", unit="", disable=None):
        try:
            path = os.path.join(image_root, image["file_name"])
            check_pixel_type(path)
            width, height = _displayed_size(path)
        except Exception as error:  # Pillow raises many kinds for damaged files
            problems.error("image file that cannot be read", f"{image['file_name']} ({error})")
            del readable[image["id"]]
            continue
        if (width, height) != (image["width"], image["height"]):
            problems.error(
                "image file of another size than the annotations say",
                f"{image['file_name']}: {width} x {height}, not {image['width']} x "
                f"{image['height']}",
            )
            del readable[image["id"]]
    names = Counter(image["file_name"] for image in readable.values())
    for name, number in names.items():
        if number > 1:
            problems.warn("image file that several images share", f"{name} ({number} times)")
    return set(readable)


def _displayed_size(path) -> Tuple[int, int]:
    """Width and height after turning the image as its EXIF orientation says."""
    with Image.open(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
        return image.size[::-1] if turned else image.size


def _inspect_annotations(file, images, id_map, records, statistics, problems) -> None:
    annotations = file.content["annotations"]
    boxes_seen = defaultdict(list)
    for annotation in tqdm(annotations, desc="Annotations", unit="", disable=None):
        image_id = annotation.get("image_id")
        known = isinstance(image_id, (int, str)) and image_id in images
        image_of = {image_id: images[image_id]} if known else {}
        try:
            instances, counts = file.instances_by_image(image_of, id_map, [annotation])
        except AnnotationFileError as error:
            problems.from_exception(error)
            continue
        image, where = images[image_id], f"annotation {annotation['id']!r}"
        (kind,) = counts
        if kind.startswith("box without area"):
            problems.warn(_why_without_area(annotation["bbox"]) + ", left out", where)
        elif kind == "box only: no usable mask in its segmentation":
            problems.warn("segmentation without a usable mask, box only", where)
        elif kind.startswith("mask, some"):
            problems.warn("mask with unusable polygons, which are left out", where)
        if not instances[image_id]:
            continue
        (instance,) = instances[image_id]
        records[image_id]["annotations"].append(instance)
        if _reaches_out(annotation["bbox"], image):
            problems.warn("box partly outside its image", where)
        if instance["iscrowd"]:
            continue
        numbers = statistics[instance["category_id"]]
        numbers.box_sizes.append(tuple(annotation["bbox"][2:]))
        boxes_seen[(image_id, instance["category_id"], *annotation["bbox"])].append(where)
        if "segmentation" in instance:
            rle = to_rle(instance["segmentation"], image["height"], image["width"])
            numbers.mask_areas.append(float(mask_util.area(rle)))
            if not _fits(mask_util.toBbox(rle), annotation["bbox"]):
                problems.warn("mask that does not fit its box", where)
    ids = [a["id"] for a in annotations if isinstance(a.get("id"), (int, str))]
    _check_unique(problems, "annotation id", ids)
    if 0 in ids:
        problems.warn("annotation id 0, which COCO evaluation counts as not found", "annotation 0")
    for same in boxes_seen.values():
        if len(same) > 1:
            problems.warn("same class and box more than once in an image", " = ".join(same))


def _why_without_area(box) -> str:
    return "box without area" if box[2] <= 0 or box[3] <= 0 else "box outside its image"


def _reaches_out(box, image) -> bool:
    x, y, w, h = box
    # A rounding error is not worth a word.
    return min(x, y, image["width"] - x - w, image["height"] - y - h) < -1


def _fits(mask_box, box) -> bool:
    """Whether the sides of two boxes (XYWH) nearly coincide."""
    x0, y0, w, h = mask_box
    sides = np.array([x0, y0, x0 + w, y0 + h])
    x, y, width, height = box
    slack = _SLACK_PIXELS + _SLACK_FRACTION * np.array([width, height, width, height])
    return bool((np.abs(sides - [x, y, x + width, y + height]) <= slack).all())
