"""Reading COCO-format annotation files in which any instance may lack a mask."""

import json
import logging
import math
import os
from array import array
from collections import defaultdict
from itertools import chain
from typing import Dict, FrozenSet, Iterable, List, Optional

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n
from tabulate import tabulate

from .polygons import check_polygons
from .segmentation import rle_run_lengths, usable_segmentation

__all__ = [
    "AnnotationFile",
    "AnnotationFileError",
    "image_file_name",
    "load_partial_coco",
    "missing_image_files",
]

# No coordinate or image side may be larger, in pixels. It keeps damaged files from asking for
# masks of many gigabytes.
_MAX_COORDINATE = 100_000
# Run lengths of masks are numbers of 32 bits.
_MAX_IMAGE_PIXELS = 2**32 - 1
# Boxes with a shorter side, in pixels, are left out; scaling and rounding would make them empty.
_MIN_BOX_SIDE = 0.01
_NUM_EXAMPLES = 5
# Polygons are checked in batches of this many annotations to bound the memory this takes.
_CHECK_BATCH = 20_000


class AnnotationFileError(ValueError):
    """An annotation file that cannot be used; says which file, which entry and why.

    Attributes:
        entry (str): the category, image or annotation concerned, or "".
        reason (str): what is wrong, without the values that differ from entry to entry.
        value (str): those values, or "".
    """

    def __init__(self, path: str, reason: str, *, entry: str = "", value: str = ""):
        message = f"{entry}: {reason}" if entry else reason
        super().__init__(f"{path}: {message}" + (f"; got {value}" if value else ""))
        self.entry, self.reason, self.value = entry, reason, value


def load_partial_coco(json_file: str, image_root: str, dataset_name: Optional[str] = None):
    """Load a COCO-format file where annotations may have a mask or only a box.

    Only a box have: annotations without ``segmentation``, with null, ``[]``, polygons that are
    unusable (fewer than three points, an odd number of values, no pixel of the image), or an RLE
    without foreground. They come out without the key "segmentation". Where some polygons of an
    instance are unusable, it keeps the others. Crowds come out as "iscrowd" 1, for the mapper to
    leave out, as in Detectron2. What is left out here (boxes without area or outside the image,
    annotations marked "ignore", unusable polygons) is counted in a table that is logged once per
    file. Keypoints are not read. Images of LVIS files, which have no
    "file_name", are looked up by the folder and name at the end of their "coco_url".

    Args:
        json_file (str): path of the annotation file.
        image_root (str): folder of the images.
        dataset_name (str): if given, "thing_classes" and "thing_dataset_id_to_contiguous_id" of
            this dataset's metadata are set.

    Returns:
        list[dict]: one per image, in Detectron2's dataset format, by ascending image id, with
        contiguous category ids in the order of the ids in the file. Each annotation also has the
        "id" that it has in the file.

    Raises:
        AnnotationFileError: if the file or the images are missing or the file is not sound.
    """
    file = AnnotationFile(json_file)
    id_map = file.category_id_map()
    images = file.images_by_id()
    _check_image_files(file, images, image_root)
    if dataset_name is not None:
        metadata = MetadataCatalog.get(dataset_name)
        metadata.thing_classes = file.class_names()
        metadata.thing_dataset_id_to_contiguous_id = id_map

    instances, counts = file.instances_by_image(images, id_map)
    dataset_dicts = [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image_id,
            "annotations": instances[image_id],
        }
        for image_id, image in images.items()
    ]
    _log_counts(json_file, len(images), len(id_map), counts)
    return dataset_dicts


class AnnotationFile:
    """The content of one annotation file, and errors that name it."""

    def __init__(self, path: str, content: Optional[dict] = None):
        """
        Args:
            path: path of the file.
            content: what is in the file, if it has been read already; images without "file_name"
                get one.

        Raises:
            AnnotationFileError: if the file cannot be read or is not in COCO format. The entries
                of its lists are checked by the methods.
        """
        self.path = path
        self.content = self._read() if content is None else content
        for key in ("images", "annotations", "categories"):
            if not isinstance(self.content.get(key), list):
                has = "is not a list" if key in self.content else "is missing"
                raise self.error(f"'{key}' {has}; is this a COCO instances file?")
            for index, entry in enumerate(self.content[key]):
                if not isinstance(entry, dict):
                    raise self.error(f"entry {index} of '{key}' is not an object")
        for image in self.content["images"]:
            image.update(file_name=image_file_name(image))

    def error(self, reason: str, *, entry: str = "", value: str = "") -> AnnotationFileError:
        return AnnotationFileError(self.path, reason, entry=entry, value=value)

    def _annotation_error(
        self, annotation: dict, reason: str, value: str = ""
    ) -> AnnotationFileError:
        entry = f"annotation {annotation.get('id')!r} (image {annotation.get('image_id')!r})"
        return self.error(reason, entry=entry, value=value)

    def _read(self) -> dict:
        try:
            with open(self.path, encoding="utf-8-sig") as f:
                content = json.load(f)
        except FileNotFoundError:
            raise self.error("there is no such annotation file") from None
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:  # also what is not UTF-8
            raise self.error(f"is not JSON, or was cut off: {error}") from None
        if not isinstance(content, dict):
            raise self.error("is not a JSON object; is this a COCO instances file?")
        return content

    def _check_unique(self, ids: list, what: str) -> None:
        if len(set(ids)) == len(ids):
            return
        seen = set()
        double = next(i for i in ids if i in seen or seen.add(i))
        raise self.error(f"two {what} have the id {double!r}")

    def check_category(self, category: dict) -> None:
        if type(category.get("id")) is not int:
            raise self.error("a category has no whole number as 'id'", value=_short(category))
        if not isinstance(category.get("name"), str) or not category["name"]:
            raise self.error("it has no 'name'", entry=f"category {category['id']}")
        self._check_text(category["name"], f"the 'name' of category {category['id']}")

    def check_image(self, image: dict) -> None:
        if not _is_id(image.get("id")):
            raise self.error("an image has no number or string as 'id'", value=_short(image))
        entry = f"image {image['id']!r}"
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            raise self.error("it has no 'file_name'", entry=entry)
        self._check_text(image["file_name"], f"the 'file_name' of {entry}")
        for key in ("height", "width"):
            if type(image.get(key)) is not int or not 0 < image[key] <= _MAX_COORDINATE:
                raise self.error(
                    f"'{key}' must be a whole number of 1 to {_MAX_COORDINATE} pixels",
                    entry=entry,
                    value=_short(image.get(key)),
                )

        if image["height"] * image["width"] > _MAX_IMAGE_PIXELS:
            raise self.error(f"it has more than {_MAX_IMAGE_PIXELS} pixels", entry=entry)

    def _check_text(self, text: str, what: str) -> None:
        """Refuse half a UTF-16 pair, which JSON can hold and no file can be written with."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise self.error(f"{what} is not Unicode text", value=_short(text)) from None

    def _sorted_categories(self) -> List[dict]:
        categories = self.content["categories"]
        if not categories:
            raise self.error("'categories' is empty")
        for category in categories:
            self.check_category(category)
        self._check_unique([c["id"] for c in categories], "categories")
        names = [c["name"] for c in categories]
        double = next((n for n in names if names.count(n) > 1), None)
        if double is not None:
            raise self.error(f"two categories have the name '{double}'")
        return sorted(categories, key=lambda category: category["id"])

    def class_names(self) -> List[str]:
        return [category["name"] for category in self._sorted_categories()]

    def category_id_map(self) -> Dict[int, int]:
        return {category["id"]: i for i, category in enumerate(self._sorted_categories())}

    def images_by_id(self) -> Dict[int, dict]:
        """Images by ascending id."""
        images = self.content["images"]
        if not images:
            raise self.error("'images' is empty")
        for image in images:
            self.check_image(image)
        self._check_unique([image["id"] for image in images], "images")
        if len({type(image["id"]) for image in images}) > 1:
            raise self.error("some image ids are numbers and some are strings")
        return {image["id"]: image for image in sorted(images, key=lambda image: image["id"])}

    def instances_by_image(
        self,
        images: Dict[int, dict],
        id_map: Dict[int, int],
        annotations: Optional[List[dict]] = None,
    ):
        """Annotations in Detectron2's format.

        Args:
            images: image id -> image, from the file.
            id_map: category id -> contiguous id.
            annotations: some annotations of the file; None for all.

        Returns:
            dict: image id -> list of annotations.
            dict: name -> ids of the annotations concerned, or their number; for the log.
        """
        if annotations is None:
            annotations = self.content["annotations"]
        self._check_keys(annotations, images, id_map)
        usable_box = self._usable_boxes(annotations, images)
        unusable = self._unusable_polygons(annotations, images)
        instances = {image_id: [] for image_id in images}
        counts = defaultdict(list)
        for index, (annotation, usable) in enumerate(zip(annotations, usable_box)):
            annotation_id = annotation["id"]
            if annotation.get("ignore"):
                counts["marked 'ignore', left out"].append(annotation_id)
                continue
            if not usable:
                counts["box without area in the image, left out"].append(annotation_id)
                continue
            instance = {
                "id": annotation_id,
                "bbox": annotation["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": id_map[annotation["category_id"]],
                "iscrowd": int(bool(annotation.get("iscrowd", 0))),
            }
            instances[annotation["image_id"]].append(instance)
            if instance["iscrowd"]:
                counts["crowd"].append(annotation_id)
                continue
            segmentation = self._segmentation(
                annotation, images[annotation["image_id"]], unusable.get(index, frozenset())
            )
            if segmentation is not None:
                instance["segmentation"] = segmentation
                some_left_out = len(segmentation) < len(annotation["segmentation"])
                kind = (
                    "mask, some of its polygons unusable and left out" if some_left_out else "mask"
                )
                counts[kind].append(annotation_id)
            elif annotation.get("segmentation"):
                counts["box only: no usable mask in its segmentation"].append(annotation_id)
            else:
                counts["box only: no segmentation"].append(annotation_id)
        return instances, counts

    def _check_keys(self, annotations, images, id_map) -> None:
        for annotation in annotations:
            for key in ("id", "image_id", "category_id", "bbox"):
                if key not in annotation:
                    raise self._annotation_error(annotation, f"'{key}' is missing")
            if not _is_id(annotation["id"]):
                raise self._annotation_error(annotation, "'id' is not a number or a string")
            image_id, category_id = annotation["image_id"], annotation["category_id"]
            if not _is_id(image_id) or image_id not in images:
                raise self._annotation_error(annotation, "'images' has no image with its image_id")
            if type(category_id) is not int or category_id not in id_map:
                raise self._annotation_error(
                    annotation,
                    "'categories' has no category with its category_id",
                    _short(category_id),
                )
            for key in ("iscrowd", "ignore"):
                if annotation.get(key) not in (None, 0, 1):  # False is 0
                    raise self._annotation_error(
                        annotation, f"'{key}' must be 0 or 1", _short(annotation[key])
                    )
            area = annotation.get("area")
            if area is not None and not _is_finite(area):
                raise self._annotation_error(annotation, "'area' must be a number", _short(area))
        self._check_unique([annotation["id"] for annotation in annotations], "annotations")

    def _usable_boxes(self, annotations, images) -> np.ndarray:
        """Bool array: which boxes have some area inside their image."""
        if not annotations:
            return np.zeros(0, dtype=bool)
        for annotation in annotations:
            if not isinstance(annotation["bbox"], list) or len(annotation["bbox"]) != 4:
                raise self._annotation_error(
                    annotation,
                    "'bbox' must be 4 numbers (x, y, width, height)",
                    _short(annotation["bbox"]),
                )
        boxes = self._numbers([a["bbox"] for a in annotations], annotations, "'bbox'")
        boxes = boxes.reshape(-1, 4)
        sizes = np.array(
            [(images[a["image_id"]]["width"], images[a["image_id"]]["height"]) for a in annotations]
        )
        low = np.maximum(boxes[:, :2], 0)
        high = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes)
        return (high - low >= _MIN_BOX_SIDE).all(axis=1)

    def _unusable_polygons(self, annotations, images) -> Dict[int, FrozenSet[int]]:
        """Check the numbers of all polygons, some thousand annotations at a time.

        Returns:
            dict: index of an annotation -> indices of those of its polygons that are no mask.
        """
        with_polygons = [
            i for i, a in enumerate(annotations) if isinstance(a.get("segmentation"), list)
        ]
        unusable = defaultdict(set)
        for start in range(0, len(with_polygons), _CHECK_BATCH):
            indices = with_polygons[start : start + _CHECK_BATCH]
            batch = [annotations[i] for i in indices]
            for annotation in batch:
                for polygon in annotation["segmentation"]:
                    if not isinstance(polygon, list):
                        raise self._annotation_error(
                            annotation, "its polygons must be lists [x, y, x, y, ...] of numbers"
                        )
            values = [list(chain.from_iterable(a["segmentation"])) for a in batch]
            numbers = self._numbers(values, batch, "a polygon")
            polygons = [
                (i, k) for i, a in zip(indices, batch) for k in range(len(a["segmentation"]))
            ]
            lengths = np.array([len(annotations[i]["segmentation"][k]) for i, k in polygons], int)
            owners = [images[annotations[i]["image_id"]] for i, _ in polygons]
            sizes = np.array([(image["height"], image["width"]) for image in owners]).reshape(-1, 2)
            usable, too_long = check_polygons(numbers, lengths, sizes)
            if too_long.any():
                annotation = annotations[polygons[too_long.argmax()][0]]
                raise self._annotation_error(annotation, "the outline of a polygon is too long")
            for p in np.flatnonzero(~usable):
                i, k = polygons[p]
                unusable[i].add(k)
        return {i: frozenset(which) for i, which in unusable.items()}

    def _numbers(self, values: List[list], annotations: List[dict], what: str) -> np.ndarray:
        """All values in one array; an error names the annotation with one that is no number."""
        try:
            numbers = np.frombuffer(array("d", chain.from_iterable(values)))  # refuses strings
            sound = np.abs(numbers) <= _MAX_COORDINATE  # False for NaN
        except (TypeError, OverflowError):
            sound = np.zeros(1, dtype=bool)
        if not sound.all():
            for annotation, row in zip(annotations, values):
                for value in row:
                    # A comparison with NaN is False.
                    is_number = type(value) in (int, float) and abs(value) <= _MAX_COORDINATE
                    if not is_number:
                        raise self._annotation_error(
                            annotation,
                            f"{what} must be numbers of pixels, between -{_MAX_COORDINATE} and "
                            f"{_MAX_COORDINATE}",
                            _short(value),
                        )
        return numbers

    def _segmentation(self, annotation: dict, image: dict, unusable: FrozenSet[int]):
        """The mask of an annotation in the form Detectron2 takes, or None."""
        segmentation = annotation.get("segmentation")
        if not segmentation:
            return None
        if isinstance(segmentation, list):
            return [p for k, p in enumerate(segmentation) if k not in unusable] or None
        if isinstance(segmentation, dict):
            size = [image["height"], image["width"]]
            if "size" in segmentation and segmentation["size"] != size:
                raise self._annotation_error(
                    annotation,
                    "the size (height, width) of its RLE is not that of its image",
                    f"{_short(segmentation['size'])}, the image's is {size}",
                )
            # Equal numbers may still be floats.
            segmentation = (
                {**segmentation, "size": size} if "size" in segmentation else segmentation
            )
        try:
            if isinstance(segmentation, dict):
                _check_rle(segmentation)
            return usable_segmentation(segmentation)
        except ValueError as error:
            raise self._annotation_error(annotation, str(error)) from None


def _is_finite(value) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _is_id(value) -> bool:
    return type(value) in (int, str)


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_rle(rle: dict) -> None:
    if "counts" not in rle or "size" not in rle:
        raise ValueError("its RLE needs 'size' and 'counts'")
    runs = rle_run_lengths(rle)
    num_pixels = rle["size"][0] * rle["size"][1]
    if runs.size and (runs.min() < 0 or runs.max() > num_pixels or runs.sum() != num_pixels):
        raise ValueError("the run lengths of its RLE do not add up to the size of its image")


def image_file_name(image: dict):
    """The file name of an image entry; files of LVIS have it in "coco_url" only, as its end."""
    url = image.get("coco_url")
    if image.get("file_name") is None and isinstance(url, str):
        return "/".join(url.split("/")[-2:])
    return image.get("file_name")


def missing_image_files(images: Iterable[dict], image_root: str) -> List[dict]:
    """The images without a file; lists each folder once, which is faster than many look-ups."""
    folders: Dict[str, frozenset] = {}
    missing = []
    for image in images:
        folder, name = os.path.split(image["file_name"])
        if folder not in folders:
            path = os.path.join(image_root, folder)
            folders[folder] = frozenset(os.listdir(path) if os.path.isdir(path) else ())
        if name not in folders[folder]:
            missing.append(image)
    return missing


def _check_image_files(file: AnnotationFile, images: Dict[int, dict], image_root: str) -> None:
    if not os.path.isdir(image_root):
        raise file.error(f"the image folder '{image_root}' does not exist")
    missing = missing_image_files(images.values(), image_root)
    if missing:
        raise file.error(
            f"{len(missing)} of {len(images)} images are not in the folder '{image_root}', such "
            f"as {', '.join(image['file_name'] for image in missing[:_NUM_EXAMPLES])}"
        )


def _log_counts(json_file: str, num_images: int, num_classes: int, counts: Dict[str, list]) -> None:
    """Log, once per file, what the annotations hold and what was left out."""
    rows = []
    for what, ids in sorted(counts.items(), key=lambda item: -len(item[1])):
        examples = ""
        if what not in ("mask", "crowd", "box only: no segmentation"):
            shown = ", ".join(str(i) for i in ids[:_NUM_EXAMPLES])
            examples = shown + (", ..." if len(ids) > _NUM_EXAMPLES else "")
        rows.append([what, len(ids), examples])
    total = sum(len(ids) for ids in counts.values())
    table = tabulate(rows, headers=["annotations", "number", "ids"], tablefmt="pipe")
    log_first_n(
        logging.INFO,
        f"Loaded {num_images} images, {num_classes} classes and {total} annotations from "
        f"{json_file}:\n{table}",
        name=__name__,
        key="message",
    )
    if 0 in chain.from_iterable(counts.values()):
        log_first_n(
            logging.WARNING,
            f"{json_file}: an annotation has the id 0, which COCO evaluation counts as not found. "
            "Number annotations from 1.",
            name=__name__,
            key="message",
        )
