"""
Masks moved to the edges of colors: a fully connected conditional random field on the cells of a box
(Krähenbühl and Koltun, NIPS 2011, Sec. 3: Gaussian pairs, mean-field iterations). Not part of
ContrastMask. Self-training learns such masks; inference can end with it.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.structures import Boxes, ImageList
from torch import nn

from .box_supervision import crop_colors
from .layers import full_precision, is_traced

# The initial logits are limited to this, so that colors can overrule a mask that is sure.
_MAX_LOGIT = 3.0
# The largest logit that a row or a column of the box without foreground is given.
_TIGHT_LOGIT = 2.0
_ITERATIONS = 5
# Votes come from cells of twice the size, which costs a quarter.
_STRIDE = 2
# In inference, where it has to be quick; a color is that of the pixel in the middle of its cell.
_QUICK = {"is_tight": False, "num_iterations": 1, "stride": 4}


# X, Y and Z of the three primaries of sRGB, relative to those of white.
_XYZ = (
    (0.412453 / 0.950456, 0.357580 / 0.950456, 0.180423 / 0.950456),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.088754, 0.119193 / 1.088754, 0.950227 / 1.088754),
)


class ColorCRF(nn.Module):
    """:func:`refine_by_color` for a model: its settings, and colors from its images."""

    def __init__(
        self,
        *,
        weight: float,
        test_weight: float,
        test_bias: float,
        distance: float,
        color_distance: float,
        pixel_mean: list[float],
        pixel_std: list[float],
        is_bgr: bool,
    ):
        """
        Args:
            weight, test_weight, distance, color_distance (float): see :func:`refine_by_color`; the
                second weight is that of the quick form. With a weight of 0 masks stay as they are.
            test_bias (float): added to logits first in the quick form.
            pixel_mean, pixel_std (list[float]): with which the model normalizes images.
            is_bgr (bool): whether the first channel is blue instead of red.
        """
        super().__init__()
        self.weight, self.test_weight, self.test_bias = weight, test_weight, test_bias
        self.distance, self.color_distance = distance, color_distance
        self.is_bgr = is_bgr
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "ColorCRF":
        """
        Raises:
            ValueError: for images that have no colors.
        """
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ValueError(
                "MODEL.ROI_MASK_HEAD.COLOR_CRF and SELF_TRAINING need INPUT.FORMAT RGB or BGR, not "
                f"{cfg.INPUT.FORMAT}"
            )
        keys = cfg.MODEL.ROI_MASK_HEAD.COLOR_CRF
        return cls(
            weight=keys.WEIGHT,
            test_weight=keys.TEST_WEIGHT,
            test_bias=keys.TEST_BIAS,
            distance=keys.DISTANCE,
            color_distance=keys.COLOR_DISTANCE,
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            is_bgr=cfg.INPUT.FORMAT == "BGR",
        )

    @torch.no_grad()
    def forward(
        self, logits: torch.Tensor, images: ImageList, boxes: list[Boxes], *, is_quick: bool
    ) -> torch.Tensor:
        """
        Args:
            logits (Tensor): (T, H, H), of masks in boxes.
            images (ImageList): N, the normalized batch.
            boxes (list[Boxes]): the T boxes, for each image.
            is_quick (bool): for inference: less exact, and boxes need not be tight.

        Returns:
            Tensor: (T, H, H) float32 logits, on their device.
        """
        size = int(logits.shape[-1])  # a tensor in torch.jit.trace
        margin = round(size / 14)
        if is_quick:
            weight, bias, options = self.test_weight, self.test_bias, _QUICK
            crop = {"margin": margin, "nearest": True}
        else:
            weight, bias, options = self.weight, 0.0, {}
            crop = {"margin": 2 * margin}
        with full_precision(logits):
            logits = logits.float()
            if weight == 0:
                return logits
            colors, in_image = crop_colors(images, boxes, size, **crop)
            colors = colors * self.pixel_std[:, None, None] + self.pixel_mean[:, None, None]
            return refine_by_color(
                logits + bias,
                rgb_to_lab(colors.flip(1) if self.is_bgr else colors),
                in_image,
                weight=weight,
                distance=self.distance,
                color_distance=self.color_distance,
                **options,
            )


def refine_by_color(
    logits: torch.Tensor,
    colors: torch.Tensor,
    in_image: torch.Tensor,
    *,
    weight: float,
    distance: float,
    color_distance: float,
    is_tight: bool = True,
    num_iterations: int = _ITERATIONS,
    stride: int = _STRIDE,
    rois_at_once: int = 32,
) -> torch.Tensor:
    """
    Every cell takes the mean of what all cells vote for, in which near cells of similar color count
    most, and adds it to its own logit; this is repeated. Around the box nothing is foreground. If
    the box is tight, rows and columns of it that end up without foreground get larger logits, and
    all begins again.

    Args:
        logits (Tensor): (T, H, H) float, of masks in boxes.
        colors (Tensor): (T, 3, H + 2 m, H + 2 m) float, CIELAB colors of the cells of the boxes and
            of a margin of m cells around them.
        in_image (Tensor): (T, H + 2 m, H + 2 m) bool; cells outside have no vote.
        weight (float): of the mean vote, which is from -1 to 1, against the logit.
        distance (float): standard deviation of the Gaussian of places, in sides of the box.
        color_distance (float): standard deviation of the Gaussian of colors.
        is_tight (bool): whether the boxes are those of objects; detected ones are not quite.
        num_iterations (int): of the votes.
        stride (int): votes come from squares of this many cells; divides H + 2 m.
        rois_at_once (int): bounds the memory: a RoI of 28 cells needs 2 MB.

    Returns:
        Tensor: (T, H, H) float32 logits; above 0 is foreground. Nothing is read from the device.
    """
    num_cells = colors.shape[-1]
    places = (torch.arange(num_cells, device=logits.device) + 0.5) / logits.shape[-1]
    places = torch.stack(torch.meshgrid(places, places, indexing="ij"))
    refined = [torch.zeros_like(logits[:0], dtype=torch.float32)]
    inputs = [x.float() for x in (logits, colors, in_image)]
    chunks = [inputs] if is_traced() else zip(*(x.split(rois_at_once) for x in inputs))
    for start, color, has_vote in chunks:
        place = places.expand(start.shape[0], -1, -1, -1)
        points = torch.cat([color / color_distance, place / distance], dim=1)
        margin = (num_cells - logits.shape[-1]) // 2
        votes = _vote_weights(points, has_vote, margin, stride)
        start = start.clamp(-_MAX_LOGIT, _MAX_LOGIT)
        options = (votes, weight, margin, stride, num_iterations)
        result = _mean_field(start, *options)
        if is_tight:
            result = _mean_field(_tighten(start, result), *options)
        refined.append(result)
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
    linear = torch.where(x > 0.04045, _power((x + 0.055) / 1.055, 2.4), x / 12.92)
    red, green, blue = linear.unbind(1)
    xyz = [torch.add(torch.add(r * red, green, alpha=g), blue, alpha=b) for r, g, b in _XYZ]
    xyz = torch.stack(xyz, dim=1)
    threshold, slope = (6 / 29) ** 3, (29 / 6) ** 2 / 3
    root = _power(xyz.clamp(min=threshold), 1 / 3)
    # The line touches the root at the threshold and is above it elsewhere.
    f, g, h = torch.minimum(root, slope * xyz + 4 / 29).unbind(1)
    return torch.stack([116 * g - 16, 500 * (f - g), 200 * (g - h)], dim=1)


def _power(x, exponent):
    """`x` ** `exponent` for positive `x`, in half of the time that a CPU takes for the operator."""
    return (exponent * x.log()).exp_()


def _vote_weights(points, has_vote, margin, stride):
    """
    How much the coarse cells count for each cell of the box.

    Args:
        points (Tensor): (R, D, N, N), scaled colors and places.
        has_vote (Tensor): (R, N, N) float, 0 or 1.
        margin (int): cells around the box.
        stride (int): see `refine_by_color`.

    Returns:
        Tensor: (R, M, H * H), up to 1, where M is the number of coarse cells.
    """
    points = points - points.mean(dim=(2, 3), keepdim=True)  # small numbers keep squares exact
    inner = slice(margin, points.shape[-1] - margin)
    cells = points[:, :, inner, inner].flatten(2)
    voters = _mean_of_squares(points, stride).flatten(2)
    share = _mean_of_squares(has_vote[:, None], stride).flatten(2)
    # One product of matrices gives minus half the squared distances, and the log of the shares.
    own = -0.5 * cells.square().sum(1, keepdim=True)
    other = share.clamp(min=1e-9).log() - 0.5 * voters.square().sum(1, keepdim=True)
    cells = torch.cat([cells, own, torch.ones_like(own)], dim=1)
    voters = torch.cat([voters, torch.ones_like(other), other], dim=1)
    # Numbers too small for the usual form of float32 would take the CPU ten times as long.
    return (voters.transpose(1, 2) @ cells).clamp_(min=-20).exp_()


def _mean_of_squares(x, side):
    """avg_pool2d of (R, C, N, N), in half of the time that a CPU takes for it."""
    return x.unflatten(2, (-1, side)).mean(3).unflatten(3, (-1, side)).mean(4)


def _mean_field(start, votes, weight, margin, stride, num_iterations):
    """(R, H, H) logits after some iterations from `start` (R, H, H); see `refine_by_color`."""
    logits = start
    for _ in range(num_iterations):
        sides = F.pad(torch.tanh(logits / 2), [margin] * 4, value=-1.0)
        expected = _mean_of_squares(sides[:, None], stride).flatten(2)
        sums, norms = (torch.cat([expected, torch.ones_like(expected)], dim=1) @ votes).unbind(1)
        # A cell that is like no other is left as it is.
        logits = start + (weight * sums / norms.clamp(min=1e-3)).view_as(start)
    return logits


def _tighten(start, refined):
    """`start` (R, H, H) with larger logits where `refined` (R, H, H) does not reach the sides."""
    is_foreground = refined > 0
    raised = [
        (_TIGHT_LOGIT - start.amax(dim, keepdim=True)).clamp(min=0)
        * ~is_foreground.any(dim, keepdim=True)
        for dim in (1, 2)
    ]
    return start + torch.maximum(*raised)
