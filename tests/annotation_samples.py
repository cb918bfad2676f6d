"""A small sound annotation file, for tests to change."""

import numpy as np
import pycocotools.mask as mask_util

from contrastmask.data.masks import rle_run_lengths

# Of image 7. Image 3 is higher than wide.
HEIGHT, WIDTH = 20, 30
OTHER_HEIGHT, OTHER_WIDTH = 26, 18
IMAGE_SIZES = {"b é.png": (HEIGHT, WIDTH), "a.png": (OTHER_HEIGHT, OTHER_WIDTH)}
TRIANGLE = [2.0, 2.0, 12.0, 2.0, 12.0, 10.0]
SQUARE = [3.0, 3.0, 9.0, 3.0, 9.0, 9.0, 3.0, 9.0]


def make_rle(compressed, height=HEIGHT, width=WIDTH, empty=False):
    """RLE of a rectangle of 8 x 5 pixels, or of nothing."""
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    if not empty:
        mask[4:9, 5:13] = 1
    encoded = mask_util.encode(mask)
    if compressed:
        return {"size": [height, width], "counts": encoded["counts"].decode()}
    return {"size": [height, width], "counts": rle_run_lengths(encoded).tolist()}


def make_annotation(annotation_id, **changes):
    """A dog in image 7 with a triangle as mask."""
    return {
        "id": annotation_id,
        "image_id": 7,
        "category_id": 40,
        "bbox": [2, 2, 10, 8],
        "area": 80,
        "iscrowd": 0,
        "segmentation": [TRIANGLE],
        **changes,
    }


def make_content(annotations):
    """Two images, ids 7 and 3; category ids of dog, cat and eel are 40, 0 and 7: none in order."""
    return {
        "images": [
            {"id": 7, "file_name": "b é.png", "height": HEIGHT, "width": WIDTH},
            {"id": 3, "file_name": "a.png", "height": OTHER_HEIGHT, "width": OTHER_WIDTH},
        ],
        "annotations": annotations,
        "categories": [
            {"id": 40, "name": "dog"},
            {"id": 0, "name": "cat"},
            {"id": 7, "name": "eel"},
        ],
    }
