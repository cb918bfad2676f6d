"""RoIs with masks and CAMs, made up from a seed."""

from typing import NamedTuple

import torch

from ..modeling.cam import min_max_normalize, resize_map


class MadeUpRoIs(NamedTuple):
    """
    masks (Tensor): (R, H, H) bool, ellipses that fill much of the RoI.
    has_mask (Tensor): (R,) bool, every second RoI is base.
    cam (Tensor): (R, H, H) float32, smooth maps in 0..1.
    """

    masks: torch.Tensor
    has_mask: torch.Tensor
    cam: torch.Tensor


def make_rois(num, side, device, seed=0):
    """
    Args:
        num (int): number of RoIs.
        side (int): in cells.
        device (str): torch device.
        seed (int):

    Returns:
        MadeUpRoIs
    """
    generator = torch.Generator().manual_seed(seed)
    position = torch.arange(side) + 0.5
    center = side * (0.35 + 0.3 * torch.rand(num, 2, 1, 1, generator=generator))
    radius = side * (0.2 + 0.3 * torch.rand(num, 2, 1, 1, generator=generator))
    x = (position[None, None, :] - center[:, 0]) / radius[:, 0]
    y = (position[None, :, None] - center[:, 1]) / radius[:, 1]
    cam = resize_map(torch.rand(num, 1, 7, 7, generator=generator), side // 2)
    cam = min_max_normalize(resize_map(cam, side))[:, 0]
    rois = MadeUpRoIs(x**2 + y**2 <= 1, torch.arange(num) % 2 == 0, cam)
    return MadeUpRoIs(*(tensor.to(device) for tensor in rois))


def make_features(num, channels, side, device, seed=0):
    """(num, channels, side, side) float32, positive."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, channels, side, side, generator=generator).abs_().to(device)
