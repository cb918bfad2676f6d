"""
Pixel sets of the contrastive loss (Sec. 3.2): query regions and easy and hard keys of each RoI,
from the mask for base RoIs and from the CAM for novel RoIs. Pure functions of tensors, batched over
RoIs.

Regions are bool for callers. Inside they are uint8 or int16 with values 0 and 1: on the CPU PyTorch
vectorizes operations on these, while those that broadcast bool or return it take 5 to 10 times
longer.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

_LOWEST = torch.iinfo(torch.int16).min


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


def mask_edges(masks: torch.Tensor) -> torch.Tensor:
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
    return (rows[:, 2:] ^ rows[:, :-2]) | (columns[:, :, 2:] ^ columns[:, :, :-2])


def boundary_ring(edges: torch.Tensor, width: int) -> torch.Tensor:
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
    masks: torch.Tensor,
    has_mask: torch.Tensor,
    cam: torch.Tensor,
    *,
    delta: float,
    fallback_delta: float,
    min_query_size: int,
    ring_width: int,
    min_set_size: int,
) -> PixelSets:
    """
    Args:
        masks (Tensor): (R, H, W) bool, mask targets. Not looked at where `has_mask` is False.
        has_mask (Tensor): (R,) bool, True for base RoIs.
        cam (Tensor): (R, H, W) float, CAMs normalized to 0..1.
        delta, fallback_delta, min_query_size, ring_width, min_set_size: see
            ``MODEL.ROI_CONTRASTIVE_HEAD`` in the config.

    Returns:
        PixelSets
    """
    edges = mask_edges(masks)
    ring = boundary_ring(edges, ring_width)
    # Foreground and background regions, (2, R, H, W).
    regions = torch.stack([masks, ~masks]).view(torch.uint8)
    hard = regions & ring.view(torch.uint8)
    easy = regions & torch.stack([~ring, ~(edges | ring)]).view(torch.uint8)
    cam_regions = _cam_regions(cam, delta)
    base = has_mask.view(torch.uint8)[:, None, None]
    keys = _choose(base, torch.stack([easy, hard]), cam_regions)
    kept = (_count(keys.flatten(3)) >= min_set_size).flatten(0, 1).all(dim=0)[:, 0]

    large = (_count(regions.flatten(2)) >= min_query_size).view(torch.uint8)[..., None]
    queries = _choose(large, regions, _cam_regions(cam, fallback_delta))
    queries = _choose(base, queries, cam_regions)
    return PixelSets(
        *queries.view(torch.bool).unbind(0), KeySets(*keys.view(torch.bool).flatten(0, 1)), kept
    )


def sample_keys(pixel_sets: PixelSets, fraction: float) -> KeySets:
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
    sizes = _count(members.view(torch.uint8))
    counts = (sizes.float() * fraction).ceil() * pixel_sets.kept[:, None]
    # Positive and negative sets of a RoI have no pixel in common and can share an ordering.
    ordering = _random_int16((2, 1, *members.shape[2:]), members.device)
    # Members: uniform in [-32768, -1]. Other pixels: 0.
    values = members.to(torch.int16).neg_().bitwise_and_(ordering.bitwise_or_(_LOWEST))
    return KeySets(*_lowest_of_each_row(values, sizes, counts).view_as(keys))


def _lowest_of_each_row(values, sizes, counts, num_steps=6):
    """
    The `counts` lowest values of each row. A search for the threshold between them and the rest:
    sorting rows takes several times longer.

    Args:
        values (Tensor): (..., P) int16, `sizes` of them uniform in [-32768, -1], the others 0.
        sizes (Tensor): (..., 1), number of values below 0.
        counts (Tensor): (..., 1) float, whole numbers, at most `sizes`.
        num_steps (int): of the search. After 6, values next to the threshold are still not told
            apart in 1 % of rows of 784; those further left are then taken.

    Returns:
        Tensor: (..., P) bool, exactly `counts` in each row.
    """
    buffer = torch.empty_like(values)
    low, high = torch.full_like(counts, _LOWEST), torch.zeros_like(counts)
    below_low, below_high = torch.zeros_like(counts), sizes.float()
    for _ in range(num_steps):
        # Values are uniform, so the threshold is near this point between the bounds.
        share = (counts - below_low + 0.5) / (below_high - below_low + 1)
        middle = (low + (high - low) * share).round()
        below = _count(_below(values, middle, buffer)).float()
        too_many = below > counts
        low, high = torch.where(too_many, low, middle), torch.where(too_many, middle, high)
        below_low = torch.where(too_many, below_low, below)
        below_high = torch.where(too_many, below, below_high)
    first = _below(values, low, buffer)
    left = _below(values, high, values).bitwise_xor_(first)
    rank = left.cumsum(dim=-1, dtype=_count_dtype(left))
    left &= rank.le_((counts - below_low).to(rank.dtype)).to(left.dtype)
    return left.bitwise_or_(first).to(torch.bool)


def _random_int16(shape, device):
    """Uniform over all int16, four numbers for each one that is drawn."""
    num = math.prod(shape)
    words = torch.empty(-(-num // 4), dtype=torch.int64, device=device)
    words.random_(torch.iinfo(words.dtype).min, None)
    return words.view(torch.int16)[:num].view(shape)


def _cam_regions(cam, delta):
    """Foreground and background, (2, R, H, W) uint8, where the CAM (R, H, W) is sure by `delta`."""
    return torch.stack([cam > 1 - delta, cam < delta]).view(torch.uint8)


def _choose(condition, first, second):
    """``torch.where`` for tensors with values 0 and 1."""
    return second ^ ((first ^ second) & condition)


def _below(values, limit, out):
    """Whether each value is below the limit: 0 or 1, in `out`, of the values' type and size."""
    return out.copy_(values).lt_(limit.to(values.dtype))


def _count(pixels):
    """Number of 1 in each row, (..., P) -> (..., 1), for values 0 and 1."""
    return pixels.sum(dim=-1, keepdim=True, dtype=_count_dtype(pixels))


def _count_dtype(pixels):
    """The smallest type that can count a row: the fastest."""
    return torch.int16 if pixels.shape[-1] < 2**15 else torch.int32
