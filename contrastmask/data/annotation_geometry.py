"""Mistakes in nearly all annotations of a file, proved by geometry: one error, not thousands."""

from typing import Callable, Collection, Dict, List, Optional, Tuple

import numpy as np

from .images import ImageHeader
from .reading_report import ReadingReport

__all__ = ["BOXES_FROM_MASKS", "check_geometry", "is_rectangle", "true_image_sizes"]

BOXES_FROM_MASKS = "DATASETS.BOXES_FROM_MASKS True"

# A mistake counts if it is in more than half of the annotations, and in so many.
_MIN_NUMBER = 3
# Fractions of the annotations that stand for "nearly all" and "all": some may be wrong otherwise.
_NEARLY_ALL, _ALL = 0.9, 0.99
# A box is that of a mask if they overlap so much, and surely is not if they overlap less than this.
_SAME, _NO_OVERLAP = 0.7, 0.3
# A mask fits its box if their sides differ by at most this.
_SLACK_PIXELS = 2
_SLACK_FRACTION = 0.1
# Of the corners of a rectangle, in pixels.
_ROUNDING = 0.01
# Values of DATASETS.BOX_FORMAT: how XYXY comes from the four numbers of each row.
_READINGS = {
    "xywh": lambda b: np.hstack([b[:, :2], b[:, :2] + b[:, 2:]]),
    "xyxy": lambda b: b,
    "cxcywh": lambda b: np.hstack([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2]),
}
_IN_WORDS = {
    "xywh": "x, y, width, height",
    "xyxy": "x1, y1, x2, y2",
    "cxcywh": "center x, center y, width, height",
}


def check_geometry(
    report: ReadingReport,
    *,
    boxes: List[Optional[list]],
    extents: List[Optional[tuple]],
    is_usable: List[bool],
    sizes: List[tuple],
    where: List[str],
    options,
) -> bool:
    """
    Args:
        report: where findings go.
        boxes: four numbers for each of N annotations, as in the file; None for no box.
        extents: x0, y0, x1, y1 of what was drawn as a mask; None for nothing.
        is_usable: whether what was drawn covers a pixel of the image.
        sizes: height and width of each image.
        where: the annotation, for messages.
        options (ReadingOptions): how boxes are meant.

    Returns:
        bool: False if there is a mistake in nearly all annotations.
    """
    boxes, extents = _rows(boxes), _rows(extents)
    sizes = np.array(sizes, dtype=np.float64).reshape(-1, 2)
    has_box, drawn = ~np.isnan(boxes[:, 0]), ~np.isnan(extents[:, 0])
    masked = drawn & np.array(is_usable, dtype=bool)
    if options.boxes_from_masks:
        has_box &= ~masked
    num_empty = int(drawn.sum() - masked.sum())
    # Boxes without width or height say nothing beside a mask, which takes their place.
    has_box &= ~masked | (boxes[:, 2:] != 0).all(axis=1)
    both, alone = has_box & masked, has_box & ~masked
    in_masks = _problem_of_fractions("masks", extents[drawn], sizes[drawn])
    remedy = f", or set {BOXES_FROM_MASKS}" if masked.any() and not in_masks else ""
    problem = (
        _problem_of_fractions("boxes", boxes[has_box], sizes[has_box], remedy)
        or in_masks
        or _problem_of_empty_masks(num_empty, int(drawn.sum()))
    )
    if not problem and both.sum() >= _MIN_NUMBER:
        problem = _problem_of_masks(boxes[both], extents[both], options.box_format)
    elif not problem:
        problem = _problem_of_borders(boxes[has_box], sizes[has_box], options.box_format)
    problem = problem or _problem_of_places(boxes[alone], sizes[alone], options.box_format)
    if problem:
        report.error(problem)
        return False
    read = _READINGS[options.box_format](boxes[both])
    for k in np.flatnonzero(both)[_inside(read, sizes[both]) & ~_fits(read, extents[both])]:
        report.warn("mask that does not fit its box", where[k])
    return True


def is_rectangle(polygon: List[float]) -> bool:
    """Whether a polygon x, y, x, y, ... is an upright rectangle, such as a box drawn as a mask."""
    if len(polygon) not in (8, 10):
        return False
    xs, ys = polygon[::2], polygon[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    off_x = max(min(x - left, right - x) for x in xs)
    off_y = max(min(y - top, bottom - y) for y in ys)
    corners = {(x - left < right - x, y - top < bottom - y) for x, y in zip(xs, ys)}
    return max(off_x, off_y) <= _ROUNDING and len(corners) == 4


def true_image_sizes(
    corners: List[list],
    sizes: List[tuple],
    header_of: Callable[[int], Optional[ImageHeader]],
    fixed: Collection[int] = (),
) -> Dict[int, Tuple[int, int]]:
    """Sizes in an annotation file that its boxes and the image files prove wrong.

    Args:
        corners: how far annotations reach in each of M images, [x, y] in pixels.
        sizes: (height, width) of these images in the annotation file.
        header_of: header of an image file, by index; None where it cannot be read.
        fixed: images whose size in the annotation file is sure.

    Returns:
        dict: index -> height and width of the image file. If most images whose annotations reach
        out of the stated size, and whose file has another one, are such that annotations fit the
        file, it holds these and all others that fit their file better than the stated size. Else
        it is empty: annotations may have been drawn on an image that was resized later.
    """

    def other_size(index: int, is_proof: bool) -> Optional[Tuple[int, int]]:
        header = header_of(index)
        is_other = header is not None and header.size != tuple(sizes[index])
        # A small object fits an image however it is turned.
        return header.size if is_other and (is_proof or header.orientation == 1) else None

    def fits(index: int, size: Tuple[int, int]) -> bool:
        x, y = corners[index]
        return x <= size[1] + _SLACK_PIXELS and y <= size[0] + _SLACK_PIXELS

    limits = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)[:, ::-1] + _SLACK_PIXELS
    outside = np.flatnonzero((np.reshape(corners, (-1, 2)) > limits).any(axis=1)).tolist()
    outside = [k for k in outside if k not in fixed]
    found = {k: size for k in outside if (size := other_size(k, True))}
    proved = {k: size for k, size in found.items() if fits(k, size)}
    if len(proved) <= len(found) / 2:
        return {}
    for k in set(range(len(sizes))).difference(outside, fixed):
        size = other_size(k, False)
        if size and fits(k, size):
            proved[k] = size
    return proved


def _inside(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) bool: whether boxes (N, 4) XYXY have some area in their images (N, 2)."""
    high = np.minimum(corners[:, 2:], sizes[:, ::-1])
    return (high > np.maximum(corners[:, :2], 0)).all(axis=1)


def _problem_of_fractions(
    what: str, coordinates: np.ndarray, sizes: np.ndarray, remedy: str = ""
) -> str:
    """Whether coordinates (N, 4) are fractions of the sides of the images (N, 2)."""
    small = (coordinates >= 0).all(axis=1) & (coordinates <= 1).all(axis=1)
    small &= (sizes > 2).all(axis=1)
    if not len(small) or small.mean() < _NEARLY_ALL:
        return ""
    return (
        f"the {what} of {small.sum()} of {len(small)} annotations lie between 0 and 1: they are "
        f"fractions of the image. Multiply x by the width and y by the height of the image{remedy}"
    )


def _problem_of_empty_masks(num_empty: int, num_drawn: int) -> str:
    if not _is_most(num_empty, num_drawn):
        return ""
    return (
        f"{num_empty} of {num_drawn} masks cover no pixel of their image: were they drawn on an "
        "image of another size?"
    )


def _problem_of_masks(boxes, extents, box_format) -> str:
    """Whether boxes are read in the wrong way, or belong to other things than the masks."""
    overlaps = {name: _overlap(read(boxes), extents) for name, read in _READINGS.items()}
    misfits = {name: int((overlap < _SAME).sum()) for name, overlap in overlaps.items()}
    total, number = len(boxes), misfits[box_format]
    if not _is_most(number, total):
        return ""
    text = f"{number} of {total} masks do not fit their boxes ({_IN_WORDS[box_format]})"
    from_masks = f"{BOXES_FROM_MASKS}, which takes boxes from masks"
    likely = min(misfits, key=misfits.get)
    if misfits[likely] < total / 2:
        return (
            f"{text}; read as {_IN_WORDS[likely]}, {total - misfits[likely]} would. Set "
            f"DATASETS.BOX_FORMAT {likely}, or {from_masks}"
        )
    if _is_most(int((overlaps[box_format] < _NO_OVERLAP).sum()), total):
        return (
            f"{text}, nor read in another way: they belong to other objects, or to images of "
            f"another size. Mend them, or set {from_masks}"
        )
    return ""


def _problem_of_borders(boxes: np.ndarray, sizes: np.ndarray, box_format: str) -> str:
    """Without masks the borders of the images tell how boxes are meant."""
    if len(boxes) < _MIN_NUMBER:
        return ""
    limits = sizes[:, ::-1] + 1
    inside = {}
    for name, read in _READINGS.items():
        corners = read(boxes)
        inside[name] = (corners[:, 2:] > corners[:, :2]).all(axis=1)
        inside[name] &= (corners[:, :2] >= -1).all(axis=1) & (corners[:, 2:] <= limits).all(axis=1)
    num_outside = len(boxes) - int(inside[box_format].sum())
    # Corners read as sizes reach out of the image nearly always, centers read as corners sometimes.
    for name, least in (("xyxy", 0.5), ("xywh", 0.5), ("cxcywh", 0.1)):
        if name == box_format or num_outside < max(_MIN_NUMBER, least * len(boxes)):
            continue
        if inside[name].mean() >= _ALL:
            return (
                f"{num_outside} of {len(boxes)} boxes ({_IN_WORDS[box_format]}) reach out of their "
                f"images or have no area; read as {_IN_WORDS[name]}, all lie inside. Set "
                f"DATASETS.BOX_FORMAT {name}"
            )
    return ""


def _problem_of_places(boxes: np.ndarray, sizes: np.ndarray, box_format: str) -> str:
    """Whether boxes that no mask could replace are in other units, or of other images."""
    number = len(boxes) - int(_inside(_READINGS[box_format](boxes), sizes).sum())
    if not _is_most(number, len(boxes)):
        return ""
    return (
        f"{number} of {len(boxes)} boxes ({_IN_WORDS[box_format]}) without a mask have no area in "
        "their image: are they in pixels of these images?"
    )


def _is_most(number: int, total: int) -> bool:
    return number >= _MIN_NUMBER and number > total / 2


def _fits(boxes: np.ndarray, extents: np.ndarray) -> np.ndarray:
    """(N,) bool: whether the sides of boxes and extents, (N, 4) XYXY, nearly coincide."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return (np.abs(boxes - extents) <= _SLACK_PIXELS + _SLACK_FRACTION * sides).all(axis=1)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,): intersection over union of boxes (N, 4) XYXY, pair by pair."""
    sides = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None)
    common = sides.prod(axis=1)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(axis=1) for x in (a, b)]
    return common / np.maximum(areas[0] + areas[1] - common, 1e-9)


def _rows(values: List[Optional[list]]) -> np.ndarray:
    """(N, 4) float64; NaN for None."""
    nothing = [np.nan] * 4
    return np.array([nothing if x is None else x for x in values], np.float64).reshape(-1, 4)
