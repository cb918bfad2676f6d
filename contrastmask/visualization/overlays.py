"""Drawing ground truth, detections and class activation maps (CAMs) over one image."""

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, BoxMode
from detectron2.utils.visualizer import GenericMask, Visualizer
from matplotlib import colormaps

from ..data.masks import usable_segmentation
from ..modeling.cam import min_max_normalize
from .labels import literal

BASE_COLOR = (0.10, 0.45, 1.00)
NOVEL_COLOR = (1.00, 0.50, 0.05)
UNUSED_COLOR = (0.60, 0.60, 0.60)
# Smaller images are enlarged to this many pixels before anything is drawn, so that text fits.
_MIN_SIDE = 480
_HEAT_OPACITY = 0.65


def draw_ground_truth(image, record, class_split):
    """Draw the annotations of an image: boxes, labels, and masks of the instances that have one.

    Args:
        image (ndarray): (H, W, 3), uint8, RGB.
        record (dict): the image in Detectron2's dataset format.
        class_split (ClassSplit): decides the colors.

    Returns:
        ndarray: (H', W', 3), uint8, RGB; enlarged if the image is small.
    """
    annotations = [x for x in record["annotations"] if not x.get("iscrowd", 0)]
    classes = [x["category_id"] for x in annotations]
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in annotations]
    return overlay(
        image,
        [class_color(c, class_split) for c in classes],
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        masks=[annotated_mask(x, image.shape[:2]) for x in annotations],
        labels=[class_split.class_names[c] for c in classes],
    )


def draw_detections(image, instances, class_split):
    """Draw detections: boxes, class and score, and masks if there are any.

    Args:
        image (ndarray): (H, W, 3), uint8, RGB.
        instances (Instances): `pred_boxes`, `scores`, `pred_classes`, perhaps `pred_masks`
            (N, H, W) bool; on the CPU.
        class_split (ClassSplit): decides the colors.

    Returns:
        ndarray: (H', W', 3), uint8, RGB; enlarged if the image is small.
    """
    classes = instances.pred_classes.tolist()
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else []
    return overlay(
        image,
        [class_color(c, class_split) for c in classes],
        boxes=instances.pred_boxes.tensor.numpy(),
        masks=masks,
        labels=[
            f"{class_split.class_names[c]} {score:.0%}"
            for c, score in zip(classes, instances.scores.tolist())
        ],
    )


def draw_cams(image, instances):
    """Blend the CAMs of detections with the image; see :func:`draw_heat_maps`.

    Args:
        image (ndarray): (H, W, 3), uint8, RGB.
        instances (Instances): `pred_boxes` and `pred_cams` (N, h, h); on the CPU.

    Returns:
        ndarray: (H, W, 3), uint8, RGB.
    """
    return draw_heat_maps(image, instances.pred_boxes, instances.pred_cams)


def draw_heat_maps(image, boxes, maps):
    """Blend square maps, each scaled to 0..1 and put into its box, with the image.

    Where boxes overlap, the larger value shows. A constant map shows as 0.

    Args:
        image (ndarray): (H, W, 3), uint8, RGB.
        boxes (Boxes): N boxes, in pixels of the image.
        maps (Tensor): (N, h, h).

    Returns:
        ndarray: (H, W, 3), uint8, RGB.
    """
    if len(maps) == 0:
        return image
    size = image.shape[:2]
    maps = min_max_normalize(maps.float())

    inside = _inside(boxes, size)
    # One more cell on each side, so that values do not fade at the border of the box. A negative
    # threshold keeps the values, as 0..255.
    side = maps.shape[-1]
    maps = F.pad(maps[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    pasted = paste_masks_in_image(maps, _grow(boxes, (side + 2) / side), size, threshold=-1)
    heat = (pasted * inside).amax(dim=0).numpy()
    inside = inside.any(dim=0).numpy()
    colors = colormaps["turbo"](heat)[..., :3] * 255
    opacity = _HEAT_OPACITY * inside[..., None]
    return np.rint(image * (1 - opacity) + colors * opacity).astype(np.uint8)


def class_color(class_id, class_split):
    """RGB color, in 0..1, of a contiguous class id: that of its role in the split."""
    if class_id in class_split.base:
        return BASE_COLOR
    return NOVEL_COLOR if class_id in class_split.novel else UNUSED_COLOR


def overlay(image, colors, boxes, labels=None, masks=(), min_side=_MIN_SIDE):
    """Draw boxes, labels and masks with Detectron2's Visualizer.

    Args:
        image (ndarray): (H, W, 3), uint8, RGB.
        colors (list): N RGB colors, in 0..1.
        boxes (ndarray): (N, 4), XYXY, pixels.
        labels (list[str] or None): N.
        masks (sequence[ndarray]): N of (H, W), bool or uint8; or none at all.
        min_side (int): the image is enlarged so that its longer side has this many pixels.

    Returns:
        ndarray: (H', W', 3), uint8, RGB.
    """
    scale = max(1.0, min_side / max(image.shape[:2]))
    visualizer = Visualizer(image, scale=scale)
    # Not through overlay_instances, which fills the holes of masks. Large masks first.
    for i in sorted(range(len(masks)), key=lambda i: masks[i].sum(), reverse=True):
        visualizer.draw_binary_mask(masks[i], color=colors[i], area_threshold=0)
    if labels is not None:
        labels = [literal(label) for label in labels]
    visualizer.overlay_instances(boxes=boxes, labels=labels, assigned_colors=colors)
    return visualizer.get_output().get_image()


def crop_around(arrays, box, margin):
    """Cut a square around a box out of images and maps of the same size.

    Args:
        arrays (list[ndarray]): (H, W, ...).
        box (ndarray): XYXY, pixels.
        margin (float): added on each side, relative to the longer side of the box.

    Returns:
        tuple[list[ndarray], ndarray]: the parts inside the image, and their offset (x, y).
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    half = max(x1 - x0, y1 - y0, 1.0) * (0.5 + margin)
    height, width = arrays[0].shape[:2]
    low = np.floor([(x0 + x1) / 2 - half, (y0 + y1) / 2 - half]).astype(int)
    high = np.ceil([(x0 + x1) / 2 + half, (y0 + y1) / 2 + half]).astype(int)
    low = np.clip(low, 0, [width - 1, height - 1])
    high = np.clip(high, low + 1, [width, height])
    return [np.ascontiguousarray(a[low[1] : high[1], low[0] : high[0]]) for a in arrays], low


def annotated_mask(annotation, size):
    """(H, W) uint8 mask of an annotation, empty if it has none."""
    segmentation = usable_segmentation(annotation.get("segmentation"))
    if segmentation is None:
        return np.zeros(size, dtype=np.uint8)
    return GenericMask(segmentation, *size).mask


def _inside(boxes, size):
    """(N, H, W) bool: pixels whose center is in the box."""
    x0, y0, x1, y1 = boxes.tensor[:, :, None].unbind(dim=1)
    y, x = (torch.arange(n) + 0.5 for n in size)
    return ((y0 <= y) & (y < y1))[:, :, None] & ((x0 <= x) & (x < x1))[:, None]


def _grow(boxes, factor):
    """Boxes with the same centers and `factor` times the sides."""
    centers = boxes.get_centers().repeat(1, 2)
    return Boxes(centers + (boxes.tensor - centers) * factor)
