"""Class activation maps (CAM) of RoIs: pure functions of tensors."""

import torch
import torch.nn.functional as F

from .layers import full_precision


def class_activation_map(features: torch.Tensor, class_weights: torch.Tensor) -> torch.Tensor:
    """
    CAM of one class per RoI: the dot product of the classifier's weights of that class with the
    feature at each position, no bias (Sec. 3.1; weights detached as in the authors' code).

    Args:
        features (Tensor): (R, C, H, W), output of the box head's classification branch.
        class_weights (Tensor): (R, C), for each RoI the classifier row of its class.

    Returns:
        Tensor: (R, 1, H, W) float32. The gradient reaches `features`, never `class_weights`.
    """
    with full_precision(features):
        weights = class_weights.detach().float()
        return torch.einsum("rchw,rc->rhw", features.float(), weights)[:, None]


def resize_map(maps: torch.Tensor, size: int) -> torch.Tensor:
    """
    Resize maps bilinearly, without aligned corners.

    Args:
        maps (Tensor): (R, C, H, W).
        size (int): side of the result, in cells.

    Returns:
        Tensor: (R, C, size, size).
    """
    if maps.shape[-2:] == (size, size):
        return maps
    return F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)


def min_max_normalize(maps: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """
    Scale each map to the range 0 to 1. A constant map becomes 0, without a gradient (the authors'
    code gives NaN there).

    Args:
        maps (Tensor): (..., H, W).
        eps (float): a map is constant if its values differ by at most this; where they are above
            1, relative to them, because they differ by rounding errors.

    Returns:
        Tensor: (..., H, W).
    """
    low = maps.amin(dim=(-2, -1), keepdim=True)
    high = maps.amax(dim=(-2, -1), keepdim=True)
    span = high - low
    varies = span > eps * torch.maximum(low.abs(), high.abs()).clamp(min=1)
    return (maps - low) / torch.where(varies, span, torch.inf)


def cam_auc(cams: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """
    How well CAMs tell objects from what is around them: the probability that a cell of the object
    has a larger value than another cell of its box (the area under the ROC curve).

    Args:
        cams (Tensor): (R, h, w) float.
        masks (Tensor): (R, H, H) bool, of the objects in their boxes. Cells of the CAM are repeated
            to this size: interpolated, many would be equal but for rounding errors.

    Returns:
        Tensor: (R,) float32, 0.5 for chance; NaN where a mask is empty or fills its box.
    """
    values = F.interpolate(cams[:, None].float(), size=masks.shape[-2:], mode="nearest").flatten(1)
    masks = masks.flatten(1)
    ordered = values.sort(dim=1).values
    first, last = (torch.searchsorted(ordered, values, right=x) for x in (False, True))
    ranks = (first + last + 1) / 2  # equal values share their mean rank
    num_inside = masks.sum(dim=1).float()
    pairs = num_inside * (masks.shape[1] - num_inside)
    return ((ranks * masks).sum(dim=1) - num_inside * (num_inside + 1) / 2) / pairs
