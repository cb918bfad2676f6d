"""
A mask loss for ground-truth boxes without a mask. Not part of ContrastMask: its two terms are those
of BoxInst (Tian et al., CVPR 2021, Sec. 3), here on the grid of a RoI. Training only.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ROIAlign
from detectron2.structures import Boxes, ImageList
from torch import nn

from .layers import full_precision

# Steps (rows, columns) to the neighbors that a pixel is compared with; the opposite steps are
# covered by the neighbors' own comparison.
_STEPS = [(s * dy, s * dx) for s in (1, 2) for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1))]
_MARGIN = max(max(abs(x) for x in step) for step in _STEPS)
# Outside a box nothing is foreground: the logit there.
_OUTSIDE_LOGIT = -20.0


class BoxSupervision(nn.Module):
    """Projection and color affinity of predicted masks, with a weight that grows linearly."""

    def __init__(
        self,
        *,
        weight: float,
        max_color_distance: float,
        warmup_iters: int,
        pixel_std: Sequence[float],
    ):
        """
        Args:
            weight (float): of the loss, after the warm-up.
            max_color_distance (float): pixels are compared if their colors differ by less, as a
                Euclidean distance; in the image's units, 0..255.
            warmup_iters (int): iterations until the weight is reached.
            pixel_std (list[float]): by which the model divides the image's channels.
        """
        super().__init__()
        self.weight = weight
        self.max_color_distance = max_color_distance
        self.warmup_iters = warmup_iters
        self.register_buffer("pixel_std", torch.tensor(pixel_std), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "BoxSupervision | None":
        """
        Returns:
            BoxSupervision, or None if its weight is 0.

        Raises:
            ValueError: for keys out of range.
        """
        keys = cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION
        name = "MODEL.ROI_MASK_HEAD.BOX_SUPERVISION"
        if keys.LOSS_WEIGHT < 0:
            raise ValueError(f"{name}.LOSS_WEIGHT has to be at least 0, not {keys.LOSS_WEIGHT}")
        if not 0 <= keys.WARMUP <= 1:
            raise ValueError(f"{name}.WARMUP has to be from 0 to 1, not {keys.WARMUP}")
        if keys.LOSS_WEIGHT == 0:
            return None
        return cls(
            weight=keys.LOSS_WEIGHT,
            max_color_distance=keys.MAX_COLOR_DISTANCE,
            warmup_iters=round(keys.WARMUP * cfg.SOLVER.MAX_ITER),
            pixel_std=cfg.MODEL.PIXEL_STD,
        )

    def forward(
        self, logits: torch.Tensor, images: ImageList, boxes: list[Boxes], iteration: int
    ) -> torch.Tensor:
        """
        Args:
            logits (Tensor): (T, 1, H, H) mask logits of boxes without a mask, T > 0.
            images (ImageList): N, the normalized batch.
            boxes (list[Boxes]): the T boxes, for each image.
            iteration (int):

        Returns:
            Tensor: 0-dim float32, the weighted loss.
        """
        with full_precision(logits):
            logits = logits[:, 0].float()
            colors, in_image = crop_colors(images, boxes, logits.shape[-1])
            colors = colors * self.pixel_std[:, None, None]
            loss = projection_loss(logits)
            loss = loss + color_affinity_loss(logits, colors, in_image, self.max_color_distance)
            return loss * (self.weight * min((iteration + 1) / max(self.warmup_iters, 1), 1.0))


def projection_loss(logits: torch.Tensor) -> torch.Tensor:
    """
    Every row and every column of a tight box has a foreground pixel: cross-entropy of the largest
    probability of each.

    Args:
        logits (Tensor): (T, H, H) float.

    Returns:
        Tensor: 0-dim.
    """
    largest = torch.cat([logits.amax(dim=1), logits.amax(dim=2)])
    return F.softplus(-largest).mean()


def color_affinity_loss(
    logits: torch.Tensor, colors: torch.Tensor, in_image: torch.Tensor, max_distance: float
) -> torch.Tensor:
    """
    Neighbors of similar color are both foreground or both background: minus the mean log
    probability of this, over all pairs with a pixel in the box. Pixels outside are background,
    those outside the image are in no pair.

    Args:
        logits (Tensor): (T, H, H) float.
        colors (Tensor): (T, 3, H + 2 m, H + 2 m) from :func:`crop_colors`.
        in_image (Tensor): (T, H + 2 m, H + 2 m) bool from :func:`crop_colors`.
        max_distance (float): colors are similar below this Euclidean distance.

    Returns:
        Tensor: 0-dim; 0 if no colors are similar.
    """
    inside = F.pad(torch.ones_like(logits, dtype=torch.bool), [_MARGIN] * 4)
    logits = F.pad(logits, [_MARGIN] * 4, value=_OUTSIDE_LOGIT)
    foreground, background = F.logsigmoid(logits), F.logsigmoid(-logits)
    total, number = 0.0, 0.0
    for step in _STEPS:
        f, g = _pairs(foreground, step)
        b, c = _pairs(background, step)
        one, other = _pairs(colors, step)
        similar = (one - other).square().sum(dim=1) < max_distance**2
        pair = similar & torch.stack(_pairs(inside, step)).any(dim=0)
        pair = pair & torch.stack(_pairs(in_image, step)).all(dim=0)
        total = total - torch.where(pair, torch.logaddexp(f + g, b + c), 0.0).sum()
        number = number + pair.sum()
    return total / number.clamp(min=1)


def crop_colors(
    images: ImageList, boxes: list[Boxes], size: int, margin: int = _MARGIN, nearest: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean colors of the cells of boxes, and of a margin around them.

    Args:
        images (ImageList): N images in a tensor (N, 3, h, w).
        boxes (list[Boxes]): T boxes, for each image.
        size (int): cells along a side of a box.
        margin (int): m, cells; as many as neighbors are apart unless given.
        nearest (bool): the pixel at the center of each cell instead of their mean, in a fraction of
            the time.

    Returns:
        tuple[Tensor, Tensor]: colors (T, 3, size + 2 m, size + 2 m) float32, no gradient, and
        whether the center of each cell is in its image (T, size + 2 m, size + 2 m) bool.
    """
    num_cells = size + 2 * margin
    with torch.no_grad():
        rois = torch.cat(
            [F.pad(x.tensor, [1, 0], value=float(index)) for index, x in enumerate(boxes)]
        )
        cell = (rois[:, 3:] - rois[:, 1:3]) / size
        low, high = rois[:, 1:3] - margin * cell, rois[:, 3:] + margin * cell
        steps = torch.arange(num_cells, device=cell.device) + 0.5
        centers = low[:, :, None] + cell[:, :, None] * steps  # T, (x, y), cells
        if nearest:
            colors = _pixels_at(images.tensor, rois[:, 0], centers)
        else:
            crop = ROIAlign((num_cells, num_cells), 1.0, 0, aligned=True)
            rois = torch.cat([rois[:, :1], low, high], dim=1)
            colors = crop(images.tensor.float(), rois.float())
        # Filled on the device: a copy from the host would wait for it.
        limits = [
            torch.stack([torch.full_like(x.tensor[:, 0], n) for n in (width, height)], dim=1)
            for x, (height, width) in zip(boxes, images.image_sizes)
        ]
        x, y = ((centers >= 0) & (centers < torch.cat(limits)[:, :, None])).unbind(dim=1)
        return colors, y[:, :, None] & x[:, None, :]


def _pixels_at(images, index, points):
    """
    Args:
        images (Tensor): (N, C, h, w).
        index (Tensor): (T,) of the image.
        points (Tensor): (T, 2, P) float, x and y of the columns and rows of a grid, in pixels.

    Returns:
        Tensor: (T, C, P, P) float32, the pixels at, or next to, the points of the grid.
    """
    num_channels, height, width = images.shape[1:]
    x = points[:, 0].clamp(0, width - 1).long()
    y = points[:, 1].clamp(0, height - 1).long()
    planes = index.long()[:, None] * num_channels + torch.arange(num_channels, device=x.device)
    rows = planes[:, :, None] * height + y[:, None]
    return images.take(rows[..., None] * width + x[:, None, None]).float()


def _pairs(x, step):
    """Each pixel and its neighbor `step` away, two views of the (..., H, W) tensor `x`."""
    dy, dx = step
    height, width = x.shape[-2:]
    left, right = max(-dx, 0), max(dx, 0)
    one = x[..., : height - dy, left : width - right]
    other = x[..., dy:, left + dx : width - right + dx]
    return one, other
