"""What counts as a usable mask in a COCO-format annotation."""

from typing import List, Optional, Union

import numpy as np
import pycocotools.mask as mask_util

from .polygons import is_usable_polygon

__all__ = ["usable_segmentation", "has_usable_mask", "rle_run_lengths", "to_rle"]


def rle_run_lengths(rle: dict) -> np.ndarray:
    """Run lengths of an RLE: background first, then by turns.

    Args:
        rle (dict): with ``counts``, run lengths (a list) or their compressed form (str or bytes).

    Returns:
        array: int64.

    Raises:
        ValueError: if the counts are malformed.
    """
    counts = rle["counts"]
    if isinstance(counts, list):
        try:
            runs = np.asarray(counts)
        except ValueError:  # lists of several lengths inside
            runs = np.zeros((0, 0))
        if runs.ndim != 1 or (runs.size and runs.dtype.kind not in "iu"):
            raise ValueError("the run lengths of its RLE are not whole numbers")
        return runs.astype(np.int64)
    if not isinstance(counts, (str, bytes)):
        raise ValueError(f"the counts of its RLE are a {type(counts).__name__}")
    if isinstance(counts, str):
        counts = counts.encode("utf-8")
    # Each number is written in groups of 5 bits, low bits first, plus 48; bit 5 means "continues".
    symbols = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not symbols.size:
        return symbols
    continues = (symbols & 0x20) != 0
    if symbols.min() < 0 or symbols.max() > 63 or continues[-1]:
        raise ValueError("the compressed counts of its RLE are damaged")
    ends = np.flatnonzero(~continues)
    starts = np.concatenate([[0], ends[:-1] + 1])
    length = ends - starts + 1
    if length.max() > 7:
        raise ValueError("the compressed counts of its RLE are damaged")
    place = np.arange(symbols.size) - np.repeat(starts, length)
    values = np.add.reduceat((symbols & 0x1F) << (5 * place), starts)
    negative = (symbols[ends] & 0x10) != 0
    values = values - np.where(negative, np.int64(1) << (5 * length), 0)
    # From the fourth on, a number is the difference to the run before the previous one.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def usable_segmentation(
    segmentation,
) -> Optional[Union[List[np.ndarray], dict]]:
    """The part of a COCO ``segmentation`` that describes a mask.

    Nothing, an empty list, polygons of fewer than three points (or with an odd number of values)
    and an RLE without foreground are no mask. An instance keeps its other polygons.

    Args:
        segmentation: None, polygons (lists of x, y, x, y, ...), or an RLE dict.

    Returns:
        list or dict or None: polygons as float64 arrays, a compressed RLE, or None for no mask.

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
                if is_usable_polygon(polygon)
            ]
        except (TypeError, ValueError):
            raise ValueError(
                "its polygons must be a list of lists [x, y, x, y, ...] of numbers"
            ) from None
        return polygons or None
    if isinstance(segmentation, dict):
        if "counts" not in segmentation or "size" not in segmentation:
            raise ValueError("its RLE needs 'size' and 'counts'")
        if isinstance(segmentation["counts"], list):
            if not segmentation["counts"]:
                return None
            segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        return segmentation if mask_util.area(segmentation) > 0 else None
    raise ValueError(f"its segmentation is a {type(segmentation).__name__}")


def has_usable_mask(segmentation) -> bool:
    """Whether :func:`usable_segmentation` gives a mask, without making it; takes sound input."""
    if not segmentation:
        return False
    if isinstance(segmentation, list):
        return any(is_usable_polygon(polygon) for polygon in segmentation)
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
