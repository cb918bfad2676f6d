"""What a COCO `segmentation` means: the forms it is written in, and whether it covers a pixel."""

import ast
import json
import math
import re
from typing import List, NamedTuple, Optional, Tuple, Union

import numpy as np
import pycocotools.mask as mask_util

__all__ = [
    "ParsedMask",
    "SegmentationError",
    "check_polygons",
    "has_hole",
    "MIN_NUMBERS",
    "compressed_rle",
    "from_text",
    "has_usable_mask",
    "is_nothing",
    "parse_number",
    "parse_polygons",
    "parse_segmentation",
    "rle_run_lengths",
    "to_rle",
    "usable_segmentation",
]

# A polygon needs three points.
MIN_NUMBERS = 6
# A polygon of less area, in pixels, may lie between the centers of pixels.
_SMALL_AREA = 4.0
# An outline that is longer than so many steps from pixel to pixel is no outline; drawing it would
# take gigabytes. The second is for each pixel of the image.
_OUTLINE_LIMIT = 100_000
_OUTLINE_LIMIT_PER_PIXEL = 4
_MAX_OUTLINE = 10_000_000
_WORDS_FOR_NOTHING = ("", "nan", "none", "null")
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")


class SegmentationError(ValueError):
    """A `segmentation` that is not understood.

    Attributes:
        value: what is wrong in it; None for all of it.
    """

    def __init__(self, reason: str, value=None):
        super().__init__(reason)
        self.value = value


class ParsedMask(NamedTuple):
    """
    mask (list[list[float]] or dict or None): polygons x, y, x, y, ..., of any length; an RLE with
        "counts" (list[int] or str) and "size" (list[int], or None where it is missing); None for
        no mask.
    repairs (tuple[str]): what was unusual and understood.
    """

    mask: Optional[Union[List[list], dict]]
    repairs: Tuple[str, ...] = ()


def parse_number(value) -> Optional[float]:
    """
    Args:
        value: what stands in an annotation file for a number: a number, or one written as text.

    Returns:
        int or float or None: None for what is no number, NaN and infinity included.
    """
    if isinstance(value, str):
        # Text of more digits than any pixel or id has is not worth Python's quadratic conversion.
        if len(value) > 40 or not _NUMBER.fullmatch(value):
            return None
        value = float(value)
        return int(value) if value.is_integer() else value
    if type(value) not in (int, float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def is_nothing(value) -> bool:
    """Whether a value says that there is nothing: null, NaN, or empty, also inside of lists."""
    if isinstance(value, list):
        return all(is_nothing(x) for x in value)
    return value is None or value in ("", {}) or (isinstance(value, float) and math.isnan(value))


def from_text(text: str):
    """
    Args:
        text: JSON, or a word for nothing, that a table program wrote in place of a value.

    Raises:
        ValueError: for other text.
    """
    return None if text.strip().lower() in _WORDS_FOR_NOTHING else json.loads(text)


def parse_segmentation(segmentation) -> ParsedMask:
    """Understand a `segmentation` in any of the forms that labeling tools write.

    Besides COCO's own forms (polygons, compressed and uncompressed RLE): one polygon as a flat
    list, polygons of [x, y] pairs, OpenCV's contours, an RLE in a list or several together,
    counts that are the text of bytes, numbers as text, and JSON as text.

    Args:
        segmentation: the value in the file.

    Returns:
        ParsedMask: coordinates and run lengths are numbers, but not checked any further.

    Raises:
        SegmentationError: if it is neither empty nor understood.
    """
    if segmentation and _is_usual(segmentation):
        return ParsedMask(segmentation)
    if is_nothing(segmentation):
        return ParsedMask(None)
    repairs = set()
    if isinstance(segmentation, str):
        try:
            segmentation = from_text(segmentation)
        except ValueError:
            raise SegmentationError("its segmentation is text") from None
        repairs.add("segmentation written as text")
        if is_nothing(segmentation):
            return ParsedMask(None)
    if isinstance(segmentation, dict):
        mask = _parse_rle(segmentation, repairs)
    elif isinstance(segmentation, list):
        mask = _parse_list(segmentation, repairs)
    else:
        raise SegmentationError(f"its segmentation is of type {type(segmentation).__name__}")
    return ParsedMask(mask, tuple(sorted(repairs)))


def _is_usual(segmentation) -> bool:
    """Whether this looks like polygons of COCO's own form: the fast way for most annotations."""
    return isinstance(segmentation, list) and all(
        type(p) is list and len(p) >= MIN_NUMBERS and type(p[0]) in (int, float)
        for p in segmentation
    )


def _parse_list(values, repairs):
    parts = [x for x in values if not is_nothing(x)]
    if any(isinstance(x, dict) and "counts" in x for x in parts):
        repairs.add("RLE in a list")
        masks = [_parse_rle(x, repairs) for x in parts if isinstance(x, dict)]
        if len(masks) < len(parts):
            raise SegmentationError("its segmentation is a list of RLEs and of something else")
        return masks[0] if len(masks) == 1 else {"union": masks}
    polygons = _polygons(values, repairs)
    if any(len(p) % 2 for p in polygons):
        raise SegmentationError("a polygon has an odd number of values")
    return polygons


def parse_polygons(segmentation: list) -> ParsedMask:
    """
    As :func:`parse_segmentation`, for a list that looked usual and holds something else deeper.

    Raises:
        SegmentationError: if it is not understood.
    """
    repairs = set()
    return ParsedMask(_parse_list(segmentation, repairs), tuple(sorted(repairs)))


def _polygons(values, repairs) -> List[list]:
    """Polygons in nested lists; a list of numbers, of pairs, or of single pairs is one polygon."""
    if not isinstance(values, list):
        raise SegmentationError("its polygons must be lists [x, y, x, y, ...] of numbers", values)
    if not any(isinstance(x, (list, dict)) for x in values):
        repairs.add("one polygon as a flat list")
        return [_coordinates(values, repairs)]
    points = [_point(x) for x in values]
    if len(points) >= 3 and all(_is_list(x, 2) and not _holds_lists(x) for x in points):
        repairs.add("points as [x, y] pairs")
        return [_coordinates([number for point in points for number in point], repairs)]
    polygons = []
    for x in values:
        if is_nothing(x):
            continue
        if isinstance(x, list) and not _holds_lists(x):
            polygons.append(_coordinates(x, repairs))
        else:
            polygons += _polygons(x, repairs)
    return polygons


def _point(x):
    """[x, y] of an object with these keys, or of OpenCV's point in a list of its own."""
    if isinstance(x, dict) and set(x) == {"x", "y"}:
        return [x["x"], x["y"]]
    return x[0] if _is_list(x, 1) and _is_list(x[0], 2) else x


def _is_list(x, length) -> bool:
    return isinstance(x, list) and len(x) == length


def _holds_lists(x) -> bool:
    return any(isinstance(value, (list, dict)) for value in x)


def _coordinates(values, repairs) -> list:
    numbers = [parse_number(x) if type(x) is not bool else None for x in values]
    if None in numbers:
        bad = values[numbers.index(None)]
        raise SegmentationError(
            "a polygon must be numbers of pixels", "null" if bad is None else bad
        )
    if any(isinstance(x, str) for x in values):
        repairs.add("numbers as text")
    return numbers


def _parse_rle(rle, repairs):
    counts, size = rle.get("counts"), rle.get("size")
    if is_nothing(counts) and set(rle) & {"counts", "size"}:
        return None
    if "counts" not in rle:
        known = ", ".join(map(str, list(rle)[:5]))
        raise SegmentationError(f"its segmentation is an object with the keys {known}, not an RLE")
    # Compressed counts have neither quotes nor commas.
    if isinstance(counts, str) and set(counts) & set("'\","):
        try:
            is_bytes = counts.startswith("b")
            counts = ast.literal_eval(counts).decode("ascii") if is_bytes else json.loads(counts)
        except (AttributeError, SyntaxError, ValueError):
            raise SegmentationError("the compressed counts of its RLE are damaged") from None
        repairs.add("RLE counts as the text of bytes or of a list")
    if isinstance(counts, list):
        counts = _whole_numbers(counts, "the run lengths of its RLE", repairs)
    elif not isinstance(counts, str):
        raise SegmentationError(f"the counts of its RLE are of type {type(counts).__name__}")
    if is_nothing(size):
        repairs.add("RLE without size")
        size = None
    elif not _is_list(size, 2):
        raise SegmentationError("the size of its RLE must be [height, width]")
    else:
        size = _whole_numbers(size, "the size of its RLE", repairs)
    return {"size": size, "counts": counts}


def _whole_numbers(values, what, repairs) -> List[int]:
    if all(type(x) is int for x in values):
        return values
    numbers = [parse_number(x) for x in values]
    if any(x is None or x != int(x) for x in numbers):
        raise SegmentationError(f"{what} are not whole numbers")
    repairs.add(
        "numbers as text" if any(isinstance(x, str) for x in values) else "whole numbers as floats"
    )
    return [int(x) for x in numbers]


def rle_run_lengths(rle: dict) -> np.ndarray:
    """Run lengths of an RLE: background first, then by turns.

    Args:
        rle (dict): with ``counts``, run lengths (a list) or their compressed form (str or bytes).

    Returns:
        array: int64.

    Raises:
        SegmentationError: if the counts are malformed.
    """
    counts = rle["counts"]
    if isinstance(counts, list):
        runs = np.asarray(counts)
        if runs.ndim != 1 or (runs.size and runs.dtype.kind not in "iu"):
            raise SegmentationError("the run lengths of its RLE are not whole numbers")
        return runs.astype(np.int64)
    if isinstance(counts, str):
        counts = counts.encode("utf-8")
    # Each number is written in groups of 5 bits, low bits first, plus 48; bit 5 means "continues".
    symbols = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not symbols.size:
        return symbols
    continues = (symbols & 0x20) != 0
    if symbols.min() < 0 or symbols.max() > 63 or continues[-1]:
        raise SegmentationError("the compressed counts of its RLE are damaged")
    ends = np.flatnonzero(~continues)
    starts = np.concatenate([[0], ends[:-1] + 1])
    length = ends - starts + 1
    if length.max() > 7:
        raise SegmentationError("the compressed counts of its RLE are damaged")
    place = np.arange(symbols.size) - np.repeat(starts, length)
    values = np.add.reduceat((symbols & 0x1F) << (5 * place), starts)
    negative = (symbols[ends] & 0x10) != 0
    values = values - np.where(negative, np.int64(1) << (5 * length), 0)
    # From the fourth on, a number is the difference to the run before the previous one.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def compressed_rle(rle: dict, height: int, width: int) -> Optional[dict]:
    """
    Args:
        rle: from :func:`parse_segmentation`.
        height, width: of the image, in pixels.

    Returns:
        dict or None: compressed RLE with "counts" as str or bytes; None if it has no foreground.

    Raises:
        SegmentationError: if it is damaged or has not the size of the image.
    """
    if "union" in rle:
        parts = [compressed_rle(x, height, width) for x in rle["union"] if x is not None]
        parts = [x for x in parts if x is not None]
        return mask_util.merge(parts) if parts else None
    size = [height, width]
    if rle["size"] not in (None, size):
        raise SegmentationError(
            f"the size (height, width) of its RLE is not that of its image, {size}", rle["size"]
        )
    runs = rle_run_lengths(rle)
    num_pixels = height * width
    if runs.size and (runs.min() < 0 or runs.max() > num_pixels or runs.sum() != num_pixels):
        raise SegmentationError("the run lengths of its RLE do not add up to the size of its image")
    if not runs[1::2].any():
        return None
    rle = {"size": size, "counts": rle["counts"]}
    return mask_util.frPyObjects(rle, *size) if isinstance(rle["counts"], list) else rle


def usable_segmentation(segmentation) -> Optional[Union[List[np.ndarray], dict]]:
    """The part of a `segmentation` in Detectron2's format that describes a mask.

    Args:
        segmentation: None, polygons (lists or arrays x, y, x, y, ...), or an RLE dict with "size".

    Returns:
        list or dict or None: polygons of three points or more as float64 arrays, a compressed RLE,
        or None for no mask.

    Raises:
        ValueError: for anything else.
    """
    if segmentation is None:
        return None
    if isinstance(segmentation, list):
        try:
            polygons = [
                np.array(polygon, dtype=np.float64)
                for polygon in segmentation
                if len(polygon) >= MIN_NUMBERS and len(polygon) % 2 == 0
            ]
        except (TypeError, ValueError):
            raise ValueError(
                "its polygons must be a list of lists [x, y, x, y, ...] of numbers"
            ) from None
        return polygons or None
    if not isinstance(segmentation, dict):
        raise ValueError(f"its segmentation is a {type(segmentation).__name__}")
    if "counts" not in segmentation or "size" not in segmentation:
        raise ValueError("its RLE needs 'size' and 'counts'")
    if isinstance(segmentation["counts"], list):
        if not segmentation["counts"]:
            return None
        segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
    return segmentation if mask_util.area(segmentation) > 0 else None


def has_usable_mask(segmentation) -> bool:
    """Whether :func:`usable_segmentation` gives a mask, without making it; takes sound input."""
    if not segmentation:
        return False
    if isinstance(segmentation, list):
        return any(len(p) >= MIN_NUMBERS and len(p) % 2 == 0 for p in segmentation)
    return usable_segmentation(segmentation) is not None


def to_rle(segmentation, height: int, width: int) -> dict:
    """
    Args:
        segmentation: polygons or an RLE dict with a usable mask.
        height, width: of the image, in pixels.

    Returns:
        dict: compressed RLE, "counts" being bytes or str.
    """
    segmentation = usable_segmentation(segmentation)
    if isinstance(segmentation, dict):
        return segmentation
    polygons = [polygon.tolist() for polygon in segmentation]
    return mask_util.merge(mask_util.frPyObjects(polygons, height, width))


def check_polygons(
    numbers: np.ndarray, lengths: np.ndarray, sizes: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """
    Args:
        numbers (array): float64, (sum of lengths,), the coordinates of N polygons in a row.
        lengths (array): int, (N,), how many of them each polygon has.
        sizes (array): int, (N, 2), height and width of each polygon's image.

    Returns:
        array: bool, (N,), which polygons describe a mask. Those of fewer than three points, or that
        cover no pixel of their image, do not.
        array: bool, (N,), which have an outline that is too long to be drawn. Of these, the first
        array says nothing.
    """
    usable = lengths >= MIN_NUMBERS
    too_long = np.zeros_like(usable)
    which = np.flatnonzero(usable)
    if not which.size:
        return usable, too_long
    points = numbers[np.repeat(usable, lengths)].reshape(-1, 2)
    num_points = lengths[which] // 2
    sizes = sizes[which].astype(np.float64)

    ends = np.cumsum(num_points)
    starts = ends - num_points
    following = np.arange(1, len(points) + 1)
    following[ends - 1] = starts
    after = points[following]
    # Parts that a self-crossing outline encloses in opposite directions cancel in this area.
    cross = points[:, 0] * after[:, 1] - points[:, 1] * after[:, 0]
    area = np.abs(np.add.reduceat(cross, starts)) / 2
    outline = np.add.reduceat(np.abs(after - points).max(axis=1), starts)
    limit = np.minimum(_OUTLINE_LIMIT + _OUTLINE_LIMIT_PER_PIXEL * sizes.prod(axis=1), _MAX_OUTLINE)
    too_long[which] = outline > limit

    # What is large and thick and inside the image covers some of its pixels. The rest is drawn, and
    # also what may go around twice, which cancels.
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    doubtful = (low < 0).any(axis=1) | (high > sizes[:, ::-1]).any(axis=1)
    doubtful |= (area < _SMALL_AREA) | (area < outline)
    doubtful |= (area >= (high - low).prod(axis=1)) & (num_points > 4)
    for i in np.flatnonzero(doubtful & (outline <= limit)):
        polygon = points[starts[i] : ends[i]].ravel().tolist()
        (rle,) = mask_util.frPyObjects([polygon], int(sizes[i, 0]), int(sizes[i, 1]))
        usable[which[i]] = mask_util.area(rle) > 0
    return usable, too_long


def has_hole(polygons: List[list]) -> bool:
    """
    Args:
        polygons: of one instance, each x, y, x, y, ... with three points or more.

    Returns:
        bool: whether all corners of a polygon lie inside of another one. COCO fills such a hole.
    """
    points = [np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in polygons]
    boxes = [(p.min(axis=0), p.max(axis=0)) for p in points]
    for i, inner in enumerate(points):
        for k, outer in enumerate(points):
            if i == k or (boxes[i][0] < boxes[k][0]).any() or (boxes[i][1] > boxes[k][1]).any():
                continue
            if not np.array_equal(inner, outer) and _inside(inner, outer).all():
                return True
    return False


def _inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """(P,) bool: whether points (P, 2) lie inside of a polygon (N, 2); even-odd rule."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    x, y = points[:, :1], points[:, 1:]
    crosses = (start[:, 1] > y) != (end[:, 1] > y)
    rise = np.where(end[:, 1] == start[:, 1], 1.0, end[:, 1] - start[:, 1])
    at = start[:, 0] + (y - start[:, 1]) / rise * (end[:, 0] - start[:, 0])
    return (crosses & (x < at)).sum(axis=1) % 2 == 1
