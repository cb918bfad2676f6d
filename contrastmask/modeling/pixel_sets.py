"""
Pixel sets of the contrastive loss (Sec. 3.2): query regions and easy and hard keys of each RoI,
from the mask for base RoIs and from the CAM for novel RoIs. Pure functions of tensors, batched over
RoIs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class KeySets(NamedTuple):
    """Four boolean tensors (R, H, W): the pixels that serve as keys."""

    easy_positive: torch.Tensor
    easy_negative: torch.Tensor
    hard_positive: torch.Tensor
    hard_negative: torch.Tensor


class PixelSets(NamedTuple):
    """
    query_foreground, query_background (Tensor): (R, H, W) bool, regions whose mean is a query.
    keys (KeySets): the key sets before sampling.
    kept (Tensor): (R,) bool, RoIs that take part in the loss.
    """

    query_foreground: torch.Tensor
    query_background: torch.Tensor
    keys: KeySets
    kept: torch.Tensor


def mask_edges(masks):
    """
    Pixels on either side of a mask boundary: where the central difference of the mask (one-sided at
    the border of the RoI) is not zero in x or in y. No edge where a mask runs into the border.

    Args:
        masks (Tensor): (R, H, W) bool.

    Returns:
        Tensor: (R, H, W) bool.
    """
    padded = F.pad(masks[:, None].float(), (1, 1, 1, 1), mode="replicate")[:, 0] > 0.5
    horizontal = padded[:, 1:-1, 2:] != padded[:, 1:-1, :-2]
    vertical = padded[:, 2:, 1:-1] != padded[:, :-2, 1:-1]
    return horizontal | vertical


def boundary_ring(edges, width):
    """
    Pixels at most `width` cells away from an edge pixel, in x and in y, that are no edge pixel.

    Args:
        edges (Tensor): (R, H, W) bool.
        width (int): half width of the ring in cells; 1 is a distance below 2.

    Returns:
        Tensor: (R, H, W) bool.
    """
    near = F.max_pool2d(edges[:, None].float(), 2 * width + 1, stride=1, padding=width)[:, 0] > 0.5
    return near & ~edges


def build_pixel_sets(
    masks, has_mask, cam, *, delta, fallback_delta, min_query_size, ring_width, min_set_size
):
    """
    Args:
        masks (Tensor): (R, H, W) bool, mask targets. Not looked at where `has_mask` is False.
        has_mask (Tensor): (R,) bool, True for base RoIs.
        cam (Tensor): (R, H, W) float, CAMs normalised to 0..1.
        delta, fallback_delta, min_query_size, ring_width, min_set_size: see
            ``MODEL.ROI_CONTRASTIVE_HEAD`` in the config.

    Returns:
        PixelSets
    """
    base = has_mask[:, None, None]
    cam_foreground, cam_background = cam > 1 - delta, cam < delta

    edges = mask_edges(masks)
    ring = boundary_ring(edges, ring_width)
    keys = KeySets(
        easy_positive=torch.where(base, masks & ~ring, cam_foreground),
        easy_negative=torch.where(base, ~(masks | edges | ring), cam_background),
        hard_positive=torch.where(base, masks & ring, cam_foreground),
        hard_negative=torch.where(base, ring & ~masks, cam_background),
    )
    kept = torch.stack([_area(k) >= min_set_size for k in keys]).all(dim=0)

    def query_region(region, fallback):
        too_small = (_area(region) < min_query_size)[:, None, None]
        return torch.where(too_small, fallback, region)

    return PixelSets(
        query_foreground=torch.where(
            base, query_region(masks, cam > 1 - fallback_delta), cam_foreground
        ),
        query_background=torch.where(
            base, query_region(~masks, cam < fallback_delta), cam_background
        ),
        keys=keys,
        kept=kept,
    )


def sample_keys(pixel_sets, fraction):
    """
    Sample from each key set of each kept RoI, uniformly and without replacement,
    ceil(fraction * size) pixels (float32 arithmetic). Easy and hard keys are drawn independently.

    Args:
        pixel_sets (PixelSets):
        fraction (float): sigma, in (0, 1].

    Returns:
        KeySets: the sampled pixels; none in RoIs that are not kept.
    """
    keys, kept = pixel_sets.keys, pixel_sets.kept
    easy_positive, easy_negative = _sample_pair(
        keys.easy_positive, keys.easy_negative, kept, fraction
    )
    hard_positive, hard_negative = _sample_pair(
        keys.hard_positive, keys.hard_negative, kept, fraction
    )
    return KeySets(easy_positive, easy_negative, hard_positive, hard_negative)


def _sample_pair(first, second, kept, fraction):
    """Sample from two disjoint sets of each RoI with one random ordering of its pixels."""
    shape = first.shape
    first, second = first.flatten(1), second.flatten(1)
    # Random order within a set: members of `first` come first, those of `second` next.
    order = torch.rand(first.shape, device=first.device)
    order = order + torch.where(first, 0.0, torch.where(second, 1.0, 2.0))
    rank = torch.empty_like(order, dtype=torch.int64)
    positions = torch.arange(order.shape[1], device=order.device).expand_as(rank)
    rank.scatter_(1, order.argsort(dim=1), positions)

    size_first, size_second = first.sum(1, keepdim=True), second.sum(1, keepdim=True)
    taken_first = torch.where(kept[:, None], (size_first.float() * fraction).ceil(), 0.0)
    taken_second = torch.where(kept[:, None], (size_second.float() * fraction).ceil(), 0.0)
    sampled_first = first & (rank < taken_first)
    sampled_second = second & (rank - size_first < taken_second)
    return sampled_first.view(shape), sampled_second.view(shape)


def _area(region):
    return region.flatten(1).sum(dim=1)
