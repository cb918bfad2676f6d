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
    rows = torch.cat([masks[:, :1], masks, masks[:, -1:]], dim=1)
    columns = torch.cat([masks[:, :, :1], masks, masks[:, :, -1:]], dim=2)
    return (rows[:, 2:] != rows[:, :-2]) | (columns[:, :, 2:] != columns[:, :, :-2])


def boundary_ring(edges, width):
    """
    Pixels at most `width` cells away from an edge pixel, in x and in y, that are no edge pixel.

    Args:
        edges (Tensor): (R, H, W) bool.
        width (int): half width of the ring in cells; 1 is a distance below 2.

    Returns:
        Tensor: (R, H, W) bool.
    """
    near = edges
    for _ in range(width):
        rows = F.pad(near, (0, 0, 1, 1))
        near = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
        columns = F.pad(near, (1, 1))
        near = columns[:, :, :-2] | columns[:, :, 1:-1] | columns[:, :, 2:]
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
    keys = torch.stack(pixel_sets.keys)  # 4, R, H, W
    members = keys.flatten(2).unflatten(0, (2, 2))  # easy and hard; positive and negative
    # Positive and negative sets of a RoI have no pixel in common and can share an ordering.
    ordering = torch.rand(2, 1, *members.shape[2:], device=members.device)
    sizes = _count(members)
    counts = (sizes.float() * fraction).ceil()
    counts = torch.where(pixel_sets.kept[:, None], counts, 0.0)
    return KeySets(*_first_of_each_row(ordering, members, sizes, counts).view_as(keys))


def _first_of_each_row(ordering, members, sizes, counts, num_steps=6):
    """
    The `counts` members with the smallest values in each row. A search for the threshold between
    them and the rest: sorting rows takes several times longer.

    Args:
        ordering (Tensor): (..., P) float, independent and uniform in [0, 1).
        members (Tensor): (..., P) bool.
        sizes (Tensor): (..., 1), number of members.
        counts (Tensor): (..., 1) float, whole numbers, at most `sizes`.
        num_steps (int): of the search. After 6, two values next to the threshold are still not
            told apart in 3 % of rows of 784; the one further left is then taken.

    Returns:
        Tensor: (..., P) bool, exactly `counts` in each row.
    """
    low, high = torch.zeros_like(counts), torch.ones_like(counts)
    below_low, below_high = torch.zeros_like(counts), sizes.float()
    for _ in range(num_steps):
        # Values are uniform, so the threshold is near this point between the bounds.
        share = (counts - below_low + 0.5) / (below_high - below_low + 1)
        middle = low + (high - low) * share
        below = _count(members & (ordering < middle)).float()
        too_many = below > counts
        low, high = torch.where(too_many, low, middle), torch.where(too_many, middle, high)
        below_low = torch.where(too_many, below_low, below)
        below_high = torch.where(too_many, below, below_high)
    first = members & (ordering < low)
    left = members & ~first & (ordering < high)
    return first | (left & (left.cumsum(dim=-1, dtype=torch.int32) <= counts - below_low))


def _area(region):
    return _count(region.flatten(1))[:, 0]


def _count(pixels):
    """Number of True values in each row, (..., P) -> (..., 1). int32: several times faster."""
    return pixels.sum(dim=-1, keepdim=True, dtype=torch.int32)
