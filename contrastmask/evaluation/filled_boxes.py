"""Filled boxes as masks: the reference that a mask head has to beat."""

from collections import defaultdict

import numpy as np
import pycocotools.mask as mask_util


def fill_boxes(detections, images):
    """Replace the mask of each detection by its filled box.

    Args:
        detections (list[dict]): COCO results with "image_id", "category_id", "score" and "bbox"
            (XYWH, pixels); not changed.
        images (dict[int, dict]): image id -> COCO image with "height" and "width".

    Returns:
        list[dict]: detections in the same order, "segmentation" being the compressed RLE of the
        box within the image.
    """
    indices_of_image = defaultdict(list)
    for index, detection in enumerate(detections):
        indices_of_image[detection["image_id"]].append(index)

    filled = [None] * len(detections)
    for image_id, indices in indices_of_image.items():
        boxes = np.array([detections[i]["bbox"] for i in indices], dtype=np.float64)
        image = images[image_id]
        rles = mask_util.frPyObjects(boxes, image["height"], image["width"])
        for i, rle in zip(indices, rles):
            filled[i] = {**detections[i], "segmentation": rle}
    return filled
