"""The values of an entry of 'annotations': each is understood, repaired or refused."""

import sys
from typing import Dict, List, NamedTuple, Optional

from .annotation_geometry import BOXES_FROM_MASKS
from .masks import SegmentationError, from_text, is_nothing, parse_number, parse_segmentation
from .reading_report import ReadingReport, names, short

__all__ = [
    "BOX_FORMATS",
    "BOX_MASKS",
    "CROWDS",
    "MAX_COORDINATE",
    "AnnotationParser",
    "Ids",
    "ParsedAnnotation",
    "ReadingOptions",
    "id_key",
    "refuse_mask",
    "to_id",
]

# How the four numbers of a box become x, y, width, height: values of DATASETS.BOX_FORMAT.
BOX_FORMATS = {
    "xywh": lambda x, y, w, h: [x, y, w, h],
    "xyxy": lambda x0, y0, x1, y1: [x0, y0, x1 - x0, y1 - y0],
    "cxcywh": lambda x, y, w, h: [x - w / 2, y - h / 2, w, h],
}
# Values of DATASETS.CROWDS.
CROWDS = ("ignore", "objects")
# Values of DATASETS.BOX_MASKS.
BOX_MASKS = ("masks", "boxes")
# No coordinate or image side may be larger, in pixels. It keeps damaged files from asking for
# masks of many gigabytes.
MAX_COORDINATE = 100_000
_NUMBERS = (int, float)
_FLAGS = {0: 0, 1: 1, "false": 0, "true": 1}


class ReadingOptions(NamedTuple):
    """
    crowds (str): what ``iscrowd`` 1 means, see ``DATASETS.CROWDS``.
    box_format (str): see ``DATASETS.BOX_FORMAT``.
    boxes_from_masks (bool): see ``DATASETS.BOXES_FROM_MASKS``.
    box_masks (str): what a polygon that is its box means, see ``DATASETS.BOX_MASKS``.
    """

    crowds: str = "ignore"
    box_format: str = "xywh"
    boxes_from_masks: bool = False
    box_masks: str = "masks"


def to_id(value):
    """An id as a number or text; None if it is neither. 7.0 is 7, text stays text."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int or isinstance(value, str) and value.strip() else None


def id_key(value):
    """The number that an id stands for, be it written as 7, 7.0, "7", "7.0" or "007"; else text."""
    number = parse_number(value.strip() if isinstance(value, str) else value)
    return str(value).strip() if number is None or number != int(number) else int(number)


class Ids:
    """Looks up entries by id, also where a number stands as text in one place of the file."""

    def __init__(self):
        self._index: Dict[object, int] = {}
        self._by_key: Dict[object, List[int]] = {}

    def add(self, value, index: int) -> None:
        self._index[value] = index
        self._by_key.setdefault(id_key(value), []).append(index)

    def find(self, value) -> Optional[int]:
        value = to_id(value)
        if value is None:
            return None
        if value in self._index:
            return self._index[value]
        found = self._by_key.get(id_key(value), ())
        return found[0] if len(found) == 1 else None

    def __contains__(self, value) -> bool:
        return value in self._index


class ParsedAnnotation(NamedTuple):
    """
    One annotation whose values are understood.

    index (int): in the file. id: as in the file, or its new number.
    image (int): index of its image entry. category (int): contiguous id of its class.
    is_crowd, is_ignored (bool): whether training leaves it out.
    box (list or None): four numbers as in the file; None where there is none.
    mask: polygons or RLE of :class:`ParsedMask`, or None.
    original (dict): as in the file. where (str): for messages.
    """

    index: int
    id: object
    image: int
    category: int
    is_crowd: bool
    is_ignored: bool
    box: Optional[list]
    mask: object
    original: dict
    where: str


class AnnotationParser:
    """From the entries of 'annotations' to values that are numbers."""

    def __init__(self, categories, images, options: ReadingOptions, report: ReadingReport):
        """
        Args:
            categories, images: the sound entries of the file, see coco_format.py.
            options: how values are read.
            report: where findings go.
        """
        self._categories = categories
        self._images = images
        self._options = options
        self._report = report

    def parse(self, annotations: List[dict]) -> List[ParsedAnnotation]:
        """
        Args:
            annotations: the entries of the file.

        Returns:
            list[ParsedAnnotation]: those that are understood, in the same order.
        """
        ids = self._annotation_ids(annotations)
        parsed = (self._parse(i, x, ids[i]) for i, x in enumerate(annotations))
        return [x for x in parsed if x is not None]

    def _annotation_ids(self, annotations: List[dict]) -> list:
        ids = [to_id(x.get("id")) for x in annotations]
        if all(type(x) is int for x in ids) and len(set(ids)) == len(ids):
            return ids
        known = [x for x in ids if x is not None]
        if len(known) == len(ids) and len(set(map(str, known))) == len(ids):
            return ids
        what = "missing" if len(known) < len(ids) else "repeated"
        for number in range(1, len(ids) + 1):
            self._report.repaired(
                f"annotation ids {what}, all annotations numbered from 1", f"annotation {number}"
            )
        return list(range(1, len(ids) + 1))

    def _parse(self, index: int, entry: dict, annotation_id) -> Optional[ParsedAnnotation]:
        where = f"annotation {annotation_id!r} (image {short(entry.get('image_id'))})"
        image = self._look_up(self._images, "image", entry, where)
        category = self._look_up(self._categories, "category", entry, where)
        if image is None or category is None:
            return None
        is_crowd, is_ignored = (self._flag(entry, key, where) for key in ("iscrowd", "ignore"))
        if is_crowd is None or is_ignored is None or not self._check_area(entry, where):
            return None
        try:
            mask, repairs = parse_segmentation(entry.get("segmentation"))
        except SegmentationError as error:
            refuse_mask(self._report, error, where, entry)
            return None
        try:
            box = self._box(entry.get("bbox"), where)
        except ValueError as error:
            if mask is None or not self._options.boxes_from_masks:
                hint = "" if mask is None else f". {BOXES_FROM_MASKS} takes boxes from masks"
                self._report.error(str(error) + hint, where, short(entry["bbox"]))
                return None
            box = None
        for what in repairs:
            self._report.repaired(what, where)
        return ParsedAnnotation(
            index, annotation_id, image, category, is_crowd, is_ignored, box, mask, entry, where
        )

    def _look_up(self, entries, what: str, entry: dict, where: str) -> Optional[int]:
        key = f"{what}_id"
        value = entry.get(key)
        index = entries.lookup.find(value)
        if index is None and not entries.is_excused(value):
            if key in entry:
                plural = {"image": "images", "category": "categories"}[what]
                known = names((repr(x.id) for x in entries.entries), 5) or "none"
                reason = f"'{plural}' has no {what} with its {key} (ids there: {known})"
                self._report.error(reason, where, short(value))
            else:
                self._report.error(f"'{key}' is missing: set it, or take the annotation out", where)
        elif index is not None and not _is_same(value, entries.entries[index].id):
            self._report.repaired(f"'{key}' as text or as a float", where)
        return index

    def _flag(self, entry: dict, key: str, where: str) -> Optional[bool]:
        value = entry.get(key)
        if value is None or type(value) in (bool, int) and value in (0, 1):
            return bool(value)
        number = parse_number(value)
        flag = value.strip().lower() if number is None and isinstance(value, str) else number
        known = False if is_nothing(value) else _FLAGS.get(flag)
        if known is None:
            self._report.error(f"'{key}' must be 0 or 1", where, short(value))
            return None
        self._report.repaired(f"'{key}' as text, as a float, or NaN", where)
        return bool(known)

    def _check_area(self, entry: dict, where: str) -> bool:
        area = entry.get("area")
        if area is None or type(area) in _NUMBERS and abs(area) <= sys.float_info.max:
            return True
        if parse_number(area) is None and not is_nothing(area):
            self._report.error("'area' must be a number", where, short(area))
            return False
        self._report.repaired("'area' as text, or NaN", where)
        return True

    def _box(self, box, where: str) -> Optional[list]:
        """
        Returns:
            list or None: four numbers; None where the file has no box.

        Raises:
            ValueError: for a value that is no box.
        """
        if type(box) is list and len(box) == 4 and any(box):  # the fast way; NaN is in no range
            low, high = -MAX_COORDINATE, MAX_COORDINATE
            if all(type(x) in _NUMBERS and low <= x <= high for x in box) and min(box[2:]) >= -1:
                return box
        if isinstance(box, str) and box:
            try:
                box = from_text(box)
                self._report.repaired("box written as text", where)
            except ValueError:
                pass
        if is_nothing(box):
            return None
        if isinstance(box, list) and len(box) == 4:
            if any(map(is_nothing, box)):
                self._report.repaired("box with null or NaN, taken for none", where)
                return None
            numbers = [float(x) if type(x) is bool else parse_number(x) for x in box]
            if None not in numbers and max(map(abs, numbers)) <= MAX_COORDINATE:
                if any(isinstance(x, str) for x in box):
                    self._report.repaired("numbers as text", where)
                if min(numbers[2:]) < -1 and self._options.box_format == "xywh":
                    self._report.repaired("box drawn from its right or bottom side", where)
                    x, y, w, h = numbers
                    numbers = [min(x, x + w), min(y, y + h), abs(w), abs(h)]
                return numbers if any(numbers) else None  # four zeros say that there is none
        raise ValueError(
            "'bbox' must be 4 numbers of pixels (x, y, width, height), between "
            f"-{MAX_COORDINATE} and {MAX_COORDINATE}"
        )


def refuse_mask(report: ReadingReport, error: SegmentationError, where: str, entry: dict) -> None:
    """Report a mask that is not understood, with its value."""
    report.error(
        str(error), where, short(entry["segmentation"] if error.value is None else error.value)
    )


def _is_same(a, b) -> bool:
    return type(a) is type(b) and a == b
