"""Mistakes in nearly all annotations of a file, proved by geometry: one error, not thousands."""

from typing import List, Optional

import numpy as np

from .reading_report import ReadingReport

__all__ = ["check_geometry"]

# A mistake counts if it is in more than half of the annotations, and in so many.
_MIN_NUMBER = 3
# Fractions of the annotations that stand for "nearly all" and "all": some may be wrong otherwise.
_NEARLY_ALL, _ALL = 0.9, 0.99
# A mask whose own box overlaps the annotated one less than this belongs to something else.
_NO_OVERLAP = 0.3
# A mask fits its box if their sides differ by at most this.
_SLACK_PIXELS = 2
_SLACK_FRACTION = 0.1
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
    both = has_box & masked
    problem = (
        _problem_of_fractions("boxes", boxes[has_box], sizes[has_box])
        or _problem_of_fractions("masks", extents[drawn], sizes[drawn])
        or _problem_of_empty_masks(num_empty, int(drawn.sum()))
    )
    fits = {name: _fits(read(boxes[both]), extents[both]) for name, read in _READINGS.items()}
    if not problem and both.sum() >= _MIN_NUMBER:
        problem = _problem_of_masks(fits, boxes[both], extents[both], options.box_format)
    elif not problem:
        problem = _problem_of_borders(boxes[has_box], sizes[has_box], options.box_format)
    if problem:
        report.error(problem)
        return False
    inside = _inside(_READINGS[options.box_format](boxes[both]), sizes[both])
    for k in np.flatnonzero(both)[inside & ~fits[options.box_format]]:
        report.warn("mask that does not fit its box", where[k])
    return True


def _inside(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) bool: whether boxes (N, 4) XYXY have some area in their images (N, 2)."""
    high = np.minimum(corners[:, 2:], sizes[:, ::-1])
    return (high > np.maximum(corners[:, :2], 0)).all(axis=1)


def _problem_of_fractions(what: str, coordinates: np.ndarray, sizes: np.ndarray) -> str:
    """Whether coordinates (N, 4) are fractions of the sides of the images (N, 2)."""
    small = (coordinates >= 0).all(axis=1) & (coordinates <= 1).all(axis=1)
    small &= (sizes > 2).all(axis=1)
    if not len(small) or small.mean() < _NEARLY_ALL:
        return ""
    return (
        f"the {what} of {small.sum()} of {len(small)} annotations lie between 0 and 1: they are "
        "fractions of the image. Multiply x by the width and y by the height of the image"
    )


def _problem_of_empty_masks(num_empty: int, num_drawn: int) -> str:
    if not _is_most(num_empty, num_drawn):
        return ""
    return (
        f"{num_empty} of {num_drawn} masks cover no pixel of their image: were they drawn on an "
        "image of another size?"
    )


def _problem_of_masks(fits, boxes, extents, box_format) -> str:
    """Whether boxes are read in the wrong way, or belong to other things than the masks."""
    total = len(boxes)
    num_misfits = total - int(fits[box_format].sum())
    if not _is_most(num_misfits, total):
        return ""
    text = f"{num_misfits} of {total} masks do not fit their boxes ({_IN_WORDS[box_format]})"
    likely = max((x for x in _READINGS if x != box_format), key=lambda name: fits[name].sum())
    number = int(fits[likely].sum())
    from_masks = "DATASETS.BOXES_FROM_MASKS True, which takes boxes from masks"
    if number > total / 2:
        return (
            f"{text}; read as {_IN_WORDS[likely]}, {number} would. Set DATASETS.BOX_FORMAT "
            f"{likely}, or {from_masks}"
        )
    overlap = _overlap(_READINGS[box_format](boxes), extents)
    if _is_most(int((overlap < _NO_OVERLAP).sum()), total):
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
