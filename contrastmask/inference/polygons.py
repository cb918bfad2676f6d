"""From masks to the polygons of COCO's format."""

from functools import reduce
from typing import List, NamedTuple

import cv2
import numpy as np

__all__ = ["MaskPolygons", "join_polygons", "mask_to_polygons", "polygon_box"]

# Corners of an outline whose distances to another one are computed at a time, to bound memory.
_CORNERS_AT_A_TIME = 500


class MaskPolygons(NamedTuple):
    """
    polygons: x, y, x, y, ... of each part of a mask, in pixels, 0, 0 being the outer corner of the
        first pixel, whose center is then at 0.5, 0.5; so pycocotools draws polygons.
    num_slits: how many holes and parts are joined to an outline by a slit without width.
    """

    polygons: List[List[float]]
    num_slits: int


def mask_to_polygons(
    mask: np.ndarray, tolerance: float = 0.0, join_parts: bool = False
) -> MaskPolygons:
    """Outlines of a mask along the borders of its pixels.

    COCO has no holes: it fills whatever lies inside a polygon. An outline with a hole therefore
    goes to the hole, around it, and back on the same line. Pixels that only touch at a corner
    become separate polygons.

    Args:
        mask: (H, W) bool or uint8.
        tolerance: the largest distance in pixels between a corner that is left out and the
            polygon. 0 leaves out none, and pycocotools then restores the mask to the pixel.
            Outlines that would lose half of their area, such as those of a few pixels, stay exact.
        join_parts: whether slits also join the parts of a mask, so that it is one polygon.

    Returns:
        MaskPolygons: no polygon for an empty mask.
    """
    mask = np.asarray(mask, dtype=np.uint8)
    polygons, num_slits = [], 0
    num, labels, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    for label in range(1, num):
        left, top, width, height = boxes[label, :4].tolist()
        part = labels[top : top + height, left : left + width] == label
        outline, *holes = [_simplify(x, tolerance) for x in _rings(part)]
        for hole in sorted(holes, key=lambda x: x[:, 0].min()):
            outline = _join(outline, hole)
        polygons.append((outline + [left, top]).ravel().tolist())
        num_slits += len(holes)
    if join_parts and len(polygons) > 1:
        num_slits += len(polygons) - 1
        polygons = [join_polygons(polygons)]
    return MaskPolygons(polygons, num_slits)


def join_polygons(polygons: List[List[float]]) -> List[float]:
    """One polygon of several, joined by slits without width between their nearest corners.

    Args:
        polygons: x, y, x, y, ... each. Where they overlap, the joined polygon has a hole.

    Returns:
        x, y, x, y, ...
    """
    rings = sorted((np.reshape(x, (-1, 2)) for x in polygons), key=lambda x: x[:, 0].min())
    return reduce(_join, rings).ravel().tolist()


def polygon_box(polygons: List[List[float]], box_format: str = "xywh") -> List[float]:
    """
    Args:
        polygons: x, y, x, y, ... each.
        box_format: a value of ``DATASETS.BOX_FORMAT``.

    Returns:
        The four numbers of the box around them, in the unit of the polygons.
    """
    points = np.concatenate([np.reshape(x, (-1, 2)) for x in polygons])
    (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    if box_format == "xyxy":
        return [x0, y0, x1, y1]
    x, y = ((x0 + x1) / 2, (y0 + y1) / 2) if box_format == "cxcywh" else (x0, y0)
    return [x, y, x1 - x0, y1 - y0]


def _rings(part: np.ndarray) -> List[np.ndarray]:
    """
    Args:
        part: (H, W) bool, one connected part.

    Returns:
        The outer ring, then those of holes, each (N, 2) float64: corners of pixels.
    """
    # OpenCV visits centers of border pixels. Of pixels twice as fine each has a corner of the mask
    # beside it, and cells 2i - 1 and 2i are on both sides of the corner i.
    fine = np.kron(part, np.ones((2, 2))).astype(np.uint8)
    contours, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer_first = np.argsort(hierarchy[0, :, 3] >= 0)
    return [((contours[i][:, 0] + 1) // 2).astype(float) for i in outer_first]


def _simplify(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Leave out corners, at least those on a straight line."""
    exact, simple = (
        cv2.approxPolyDP(ring.astype(np.float32)[:, None], x, True)[:, 0].astype(float)
        for x in (0.0, tolerance)
    )
    return simple if 2 * _area(simple) > _area(exact) else exact


def _area(ring: np.ndarray) -> float:
    (x, y), (after_x, after_y) = ring.T, np.roll(ring, -1, axis=0).T
    return abs(float((x * after_y - y * after_x).sum())) / 2


def _join(outline: np.ndarray, other: np.ndarray) -> np.ndarray:
    """One ring of both, which crosses between their nearest corners, there and back."""
    nearest = []
    for start in range(0, len(outline), _CORNERS_AT_A_TIME):
        corners = outline[start : start + _CORNERS_AT_A_TIME]
        distances = ((corners[:, None] - other[None]) ** 2).sum(axis=2)
        i, k = np.unravel_index(distances.argmin(), distances.shape)
        nearest.append((distances[i, k], start + i, k))
    _, i, k = min(nearest)
    around = np.roll(other, -k, axis=0)
    return np.concatenate([outline[: i + 1], around, around[:1], outline[i:]])
