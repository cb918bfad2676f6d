"""Mask targets of RoIs, cropped from the ground-truth masks of their images."""

import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks


def crop_mask_targets(gt_masks, gt_index, boxes, size):
    """
    Crop, for each box, the mask of the ground truth it is matched to, and resize it. The result
    equals ``gt_masks[gt_index].crop_and_resize(boxes, size)`` of Detectron2 without a copy of the
    full-size mask per box.

    Args:
        gt_masks (BitMasks or PolygonMasks): the M masks of one image.
        gt_index (Tensor): (R,) int64, index of a mask for each box.
        boxes (Tensor): (R, 4) float, XYXY in image pixels. One whose sides are in the wrong order
            counts as one without width or height.
        size (int): side of the targets, in cells.

    Returns:
        Tensor: (R, size, size) bool.
    """
    if not isinstance(gt_masks, BitMasks):
        return gt_masks[gt_index].crop_and_resize(boxes, size)
    low, high = boxes.split(2, dim=1)
    rois = torch.cat([gt_index.to(boxes.dtype)[:, None], low, torch.maximum(low, high)], dim=1)
    crop = ROIAlign((size, size), 1.0, 0, aligned=True)
    masks = gt_masks.tensor.to(device=boxes.device, dtype=torch.float32)
    return crop(masks[:, None], rois)[:, 0] >= 0.5
