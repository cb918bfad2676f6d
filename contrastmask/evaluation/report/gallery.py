"""Best, median and worst masks of an evaluation beside the ground truth."""

import base64
import io
from collections import defaultdict
from dataclasses import dataclass
from typing import Dict, List

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from ...data.images import read_image
from ...data.segmentation import to_rle
from ...visualization.overlays import class_color, crop_around, overlay

# A detection shows the mask of a ground truth if it has its class and its box overlaps that much.
_MIN_BOX_IOU = 0.5
_MARGIN = 0.2
_PANEL_SIDE = 220
_JPEG_QUALITY = 85


@dataclass
class MaskPair:
    """A ground truth and the detection that fits its box best.

    Attributes:
        image_id: id of the image in the annotation file.
        annotation: ground truth with "bbox" (XYWH), "category_id", "segmentation".
        detection: COCO result.
        iou: of the two masks.
    """

    image_id: object
    annotation: dict
    detection: dict
    iou: float


def match_masks(images, annotations, detections, category_ids):
    """Find the detection of each annotated mask.

    Args:
        images (dict): image id -> image with "height" and "width".
        annotations (list[dict]): ground truth of an evaluation.
        detections (list[dict]): COCO results with "bbox" and "segmentation".
        category_ids (set[int]): categories to look at.

    Returns:
        tuple[list[MaskPair], int]: pairs with falling IoU of the masks, and the number of annotated
        masks without a detection of the same class whose box overlaps theirs enough.
    """
    found = defaultdict(list)
    for detection in detections:
        found[detection["image_id"], detection["category_id"]].append(detection)
    pairs, num_missed = [], 0
    for annotation in annotations:
        is_shown = annotation["category_id"] in category_ids and not annotation.get("iscrowd", 0)
        if not (is_shown and "segmentation" in annotation):
            continue
        image_id = annotation["image_id"]
        candidates = found[image_id, annotation["category_id"]]
        boxes = np.array([x["bbox"] for x in candidates], dtype=np.float64).reshape(-1, 4)
        truth = np.array([annotation["bbox"]], dtype=np.float64)
        overlaps = mask_util.iou(boxes, truth, [0])[:, 0] if len(boxes) else np.zeros(0)
        if overlaps.max(initial=0) < _MIN_BOX_IOU:
            num_missed += 1
            continue
        detection = candidates[int(overlaps.argmax())]
        size = images[image_id]["height"], images[image_id]["width"]
        mask = to_rle(annotation["segmentation"], *size)
        iou = float(mask_util.iou([detection["segmentation"]], [mask], [0])[0, 0])
        pairs.append(MaskPair(image_id, annotation, detection, iou))
    return sorted(pairs, key=lambda pair: -pair.iou), num_missed


def best_median_worst(pairs, number) -> Dict[str, List[MaskPair]]:
    """At most `number` pairs of each kind, none of them twice.

    Args:
        pairs (list[MaskPair]): with falling IoU.
        number (int):
    """
    number = min(number, max(1, len(pairs) // 3))
    middle = (len(pairs) - number) // 2
    kinds = {
        "best": pairs[:number],
        "median": pairs[middle : middle + number] if len(pairs) > 2 else [],
        "worst": pairs[-number:] if len(pairs) > 1 else [],
    }
    return {kind: chosen for kind, chosen in kinds.items() if chosen}


def draw_pair(pair, path, class_id, class_split):
    """Draw the surroundings of a ground-truth box with the annotated and with the predicted mask.

    Args:
        pair (MaskPair):
        path (str): image file.
        class_id (int): contiguous.
        class_split (ClassSplit): decides the colour.

    Returns:
        list[str]: two data URIs.
    """
    image = read_image(path, format="RGB")
    color = class_color(class_id, class_split)
    uris = []
    for x in (pair.annotation, pair.detection):
        mask = mask_util.decode(to_rle(x["segmentation"], *image.shape[:2]))
        (crop, mask), offset = crop_around([image, mask], _to_xyxy(pair.annotation), _MARGIN)
        boxes = (_to_xyxy(x) - np.tile(offset, 2))[None]
        drawn = overlay(crop, [color], boxes, masks=[mask], min_side=_PANEL_SIDE)
        uris.append(_to_data_uri(drawn))
    return uris


def _to_xyxy(x):
    left, top, width, height = x["bbox"]
    return np.array([left, top, left + width, top + height], dtype=np.float64)


def _to_data_uri(image):
    picture = Image.fromarray(image)
    picture.thumbnail((_PANEL_SIDE * 2, _PANEL_SIDE * 2))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
