"""Which polygons of an annotation file describe a mask, decided for many at once."""

from typing import Tuple

import numpy as np
import pycocotools.mask as mask_util

__all__ = ["check_polygons", "is_usable_polygon"]

# A polygon needs three points.
_MIN_NUMBERS = 6
# A polygon of less area, in pixels, may lie between the centres of pixels.
_SMALL_AREA = 4.0
# An outline that is longer than so many steps from pixel to pixel is no outline; drawing it would
# take gigabytes. The second is for each pixel of the image.
_OUTLINE_LIMIT = 100_000
_OUTLINE_LIMIT_PER_PIXEL = 4
_MAX_OUTLINE = 10_000_000


def is_usable_polygon(polygon) -> bool:
    """Whether a polygon (a sequence x, y, x, y, ...) has three points or more."""
    return len(polygon) >= _MIN_NUMBERS and len(polygon) % 2 == 0


def check_polygons(
    numbers: np.ndarray, lengths: np.ndarray, sizes: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """
    Args:
        numbers (array): float64, (sum of lengths,), the coordinates of N polygons in a row.
        lengths (array): int, (N,), how many of them each polygon has.
        sizes (array): int, (N, 2), height and width of each polygon's image.

    Returns:
        array: bool, (N,), which polygons describe a mask. Those of fewer than three points, with an
        odd number of values, or that cover no pixel of their image do not.
        array: bool, (N,), which have an outline that is too long to be drawn. Of these, the first
        array says nothing.
    """
    usable = (lengths >= _MIN_NUMBERS) & (lengths % 2 == 0)
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
