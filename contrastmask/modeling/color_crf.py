"""
Masks moved to the edges of colors: a fully connected conditional random field on the cells of a box
(Krähenbühl and Koltun, NIPS 2011, Sec. 3: Gaussian pairs, mean-field iterations). Not part of
ContrastMask. Training only.
"""

import torch
import torch.nn.functional as F

# Logit of the cells of the margin: outside a box nothing is foreground.
_OUTSIDE_LOGIT = -10.0
# The initial logits are limited to this, so that colors can overrule a mask that is sure.
_MAX_LOGIT = 3.0
# The largest logit that a row or a column of the box without foreground is given.
_TIGHT_LOGIT = 2.0
_ITERATIONS = 5
# Votes come from cells of twice the size, which costs a quarter.
_STRIDE = 2


def refine_by_color(
    logits: torch.Tensor,
    colors: torch.Tensor,
    in_image: torch.Tensor,
    *,
    weight: float,
    distance: float,
    color_distance: float,
    rois_at_once: int = 32,
) -> torch.Tensor:
    """
    Every cell takes the mean of what all cells vote for, in which near cells of similar color count
    most, and adds it to its own logit; this is repeated. Rows and columns of the box that end up
    without foreground, although the box is tight, get larger logits, and all begins again.

    Args:
        logits (Tensor): (T, H, H) float, of masks in boxes; H is even.
        colors (Tensor): (T, 3, H + 2 m, H + 2 m) float, CIELAB colors of the cells of the boxes and
            of a margin of m cells around them; m is even.
        in_image (Tensor): (T, H + 2 m, H + 2 m) bool; cells outside have no vote.
        weight (float): of the mean vote, which is from -1 to 1, against the logit.
        distance (float): standard deviation of the Gaussian of places, in sides of the box.
        color_distance (float): standard deviation of the Gaussian of colors.
        rois_at_once (int): bounds the memory: a RoI of 28 cells needs 3.4 MB.

    Returns:
        Tensor: (T, H, H) float32 logits; above 0 is foreground. Nothing is read from the device.
    """
    num_cells = colors.shape[-1]
    places = (torch.arange(num_cells, device=logits.device) + 0.5) / logits.shape[-1]
    places = torch.stack(torch.meshgrid(places, places, indexing="ij"))
    refined = [torch.zeros_like(logits[:0], dtype=torch.float32)]
    for chunk in zip(*(x.float().split(rois_at_once) for x in (logits, colors, in_image))):
        start, color, has_vote = chunk
        place = places.expand(len(start), -1, -1, -1)
        points = torch.cat([color / color_distance, place / distance], dim=1)
        votes = _vote_weights(points, has_vote) * weight
        start = start.clamp(-_MAX_LOGIT, _MAX_LOGIT)
        first = _mean_field(start, votes, num_cells)
        refined.append(_mean_field(_tighten(start, first), votes, num_cells))
    return torch.cat(refined)


def rgb_to_lab(colors: torch.Tensor) -> torch.Tensor:
    """
    CIELAB for sRGB (IEC 61966-2-1), white point D65.

    Args:
        colors (Tensor): (T, 3, h, w) float, 0..255, red first; values outside are clipped.

    Returns:
        Tensor: (T, 3, h, w), lightness 0..100, a, b.
    """
    x = (colors / 255).clamp(0, 1)
    red, green, blue = torch.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92).unbind(1)
    xyz = (
        (0.412453 * red + 0.357580 * green + 0.180423 * blue) / 0.950456,
        0.212671 * red + 0.715160 * green + 0.072169 * blue,
        (0.019334 * red + 0.119193 * green + 0.950227 * blue) / 1.088754,
    )
    threshold, slope = (6 / 29) ** 3, (29 / 6) ** 2 / 3
    f, g, h = (
        torch.where(t > threshold, t.clamp(min=threshold) ** (1 / 3), slope * t + 4 / 29)
        for t in xyz
    )
    return torch.stack([116 * g - 16, 500 * (f - g), 200 * (g - h)], dim=1)


def _vote_weights(points, has_vote):
    """
    How much the coarse cells count for each cell; the sum over them is 1.

    Args:
        points (Tensor): (R, D, N, N), scaled colors and places.
        has_vote (Tensor): (R, N, N) float, 0 or 1.

    Returns:
        Tensor: (R, N * N, M), where M is the number of coarse cells.
    """
    points = points - points.mean(dim=(2, 3), keepdim=True)  # small numbers keep squares exact
    voters = F.avg_pool2d(points, _STRIDE).flatten(2)
    cells = points.flatten(2)
    squared = cells.square().sum(1)[:, :, None] + voters.square().sum(1)[:, None]
    squared = squared - 2 * cells.transpose(1, 2) @ voters
    weights = torch.exp(-0.5 * squared.clamp(min=0))
    weights = weights * F.avg_pool2d(has_vote[:, None], _STRIDE).flatten(2)
    # A cell that is like no other is left as it is.
    return weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-3)


def _mean_field(start, votes, num_cells):
    """(R, H, H) logits after some iterations from `start` (R, H, H); see `refine_by_color`."""
    margin = (num_cells - start.shape[-1]) // 2
    start = F.pad(start, [margin] * 4, value=_OUTSIDE_LOGIT)[:, None]
    logits = start
    for _ in range(_ITERATIONS):
        expected = F.avg_pool2d(torch.tanh(logits / 2), _STRIDE).flatten(2).transpose(1, 2)
        logits = start + (votes @ expected).view_as(start)
    inner = slice(margin, num_cells - margin)
    return logits[:, 0, inner, inner]


def _tighten(start, refined):
    """`start` (R, H, H) with larger logits where `refined` (R, H, H) does not reach the sides."""
    is_foreground = refined > 0
    raised = [
        (_TIGHT_LOGIT - start.amax(dim, keepdim=True)).clamp(min=0)
        * ~is_foreground.any(dim, keepdim=True)
        for dim in (1, 2)
    ]
    return start + torch.maximum(*raised)
