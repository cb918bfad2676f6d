"""
Self-training, a mask loss for ground-truth boxes without a mask: a teacher, the slow average of the
mask head (Tarvainen and Valpola, NIPS 2017), predicts their masks, colors correct these, cells that
belong to another object of the class are taken away, and the mask head learns the result. Not part
of ContrastMask. Training only.
"""

import copy

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.structures import Boxes, ImageList
from torch import nn

from .color_crf import ColorCRF
from .layers import full_precision

# A cell belongs to another object if the teacher's logit there is larger by more than this.
_CLAIM = 2.0
# Logits are at least this; it is also the logit of what is outside a box.
_MIN_LOGIT = -9.0


class SelfTraining(nn.Module):
    """
    The teacher, its labels and the loss. The teacher is in checkpoints, under the name of this
    module and "teacher", so that a training can be resumed; nothing else uses it.
    """

    def __init__(
        self,
        mask_head: nn.Module,
        *,
        weight: float,
        start: float,
        ramp: float,
        decay: float,
        crf: ColorCRF,
    ):
        """
        Args:
            mask_head (nn.Module): what learns; it is copied.
            weight (float): of the loss, after the ramp.
            start, ramp (float): iterations before the loss begins, and until it has its weight.
            decay (float): share of its old value that the teacher keeps in an iteration.
            crf (ColorCRF): makes the labels of the teacher's masks.
        """
        super().__init__()
        self.teacher = copy.deepcopy(mask_head).requires_grad_(False).eval()
        self.weight, self.start, self.ramp_length, self.decay = weight, start, ramp, decay
        self.crf = crf
        self._updated_in = None  # iteration

    @classmethod
    def from_config(cls, cfg: CfgNode, mask_head: nn.Module) -> "SelfTraining | None":
        """
        Returns:
            SelfTraining, or None if its weight is 0.

        Raises:
            ValueError: for images that have no colors.
        """
        keys = cfg.MODEL.ROI_MASK_HEAD.SELF_TRAINING
        if keys.LOSS_WEIGHT == 0:
            return None
        return cls(
            mask_head,
            weight=keys.LOSS_WEIGHT,
            start=keys.START * cfg.SOLVER.MAX_ITER,
            ramp=keys.RAMP * cfg.SOLVER.MAX_ITER,
            decay=keys.DECAY,
            crf=ColorCRF.from_config(cfg),
        )

    def train(self, mode: bool = True) -> "SelfTraining":
        """As in :class:`nn.Module`, but the teacher never trains."""
        super().train(mode)
        self.teacher.eval()
        return self

    def ramp(self, iteration: int) -> float:
        """float: what the weight is multiplied by, from 0 to 1."""
        if iteration < self.start:
            return 0.0
        return min((iteration + 1 - self.start) / max(self.ramp_length, 1), 1.0)

    @torch.no_grad()
    def update_teacher(self, mask_head: nn.Module, iteration: int) -> None:
        """
        Once in every iteration, before it learns; further calls in the same one (of the parts of a
        batch) do nothing. Nor does a call in evaluation mode. The first iterations count the less
        the fewer there were, so the teacher begins with the weights that the training begins with.

        Args:
            mask_head (nn.Module): what learns.
            iteration (int): from 0.
        """
        if not self.training or iteration == self._updated_in:
            return
        self._updated_in = iteration
        decay = min(self.decay, iteration / (iteration + 9))
        pairs = zip(self.teacher.state_dict().values(), mask_head.state_dict().values())
        for old, new in pairs:
            if old.is_floating_point():
                old.lerp_(new.to(old.dtype), 1 - decay)
            else:
                old.copy_(new)

    @torch.no_grad()
    def labels(
        self,
        inputs: tuple[torch.Tensor | None, ...],
        images: ImageList,
        boxes: list[Boxes],
        classes: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            inputs (tuple[Tensor or None]): of the mask head, for T boxes.
            images (ImageList): N, the normalized batch.
            boxes (list[Boxes]): the T boxes, for each image.
            classes (Tensor): (T,) int64.

        Returns:
            tuple[Tensor, Tensor]: (T, H, H) bool, the masks to learn, and the teacher's own.
        """
        logits = self.teacher(*inputs)[:, 0]
        masks = self.crf(logits, images, boxes, is_quick=False) > 0
        lengths = [len(x) for x in boxes]
        of_images = zip(logits.split(lengths), boxes, classes.split(lengths))
        claimed = torch.cat([claimed_by_others(x, y.tensor, z) for x, y, z in of_images])
        return masks & ~claimed, logits > 0

    def forward(
        self,
        logits: torch.Tensor,
        inputs: tuple[torch.Tensor | None, ...],
        images: ImageList,
        boxes: list[Boxes],
        classes: torch.Tensor,
        iteration: int,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Args:
            logits (Tensor): (T, 1, H, H) mask logits of boxes without a mask, T > 0.
            inputs, images, boxes, classes: see :meth:`labels`.
            iteration (int): in which :meth:`ramp` is above 0.

        Returns:
            tuple[Tensor, dict[str, Tensor]]: 0-dim float32, the weighted loss, and numbers for the
            event storage: the mean IoU of the labels with the teacher's masks (what was corrected)
            and with the mask head's, and the share of foreground.
        """
        labels, predicted = self.labels(inputs, images, boxes, classes)
        learned = logits.detach()[:, 0] > 0
        loss = F.binary_cross_entropy_with_logits(logits[:, 0].float(), labels.float())
        return loss * (self.weight * self.ramp(iteration)), {
            "iou_with_teacher": _mean_iou(labels, predicted),
            "iou_with_mask_head": _mean_iou(labels, learned),
            "foreground": labels.float().mean(),
        }


def claimed_by_others(
    logits: torch.Tensor, boxes: torch.Tensor, classes: torch.Tensor, others_at_once: int = 16
) -> torch.Tensor:
    """
    Where boxes of a class overlap, as in a herd, colors cannot tell the objects apart. A cell is
    another object's if the mask of that one is surer of it. Not so for different classes: people
    often draw what lies on a table as part of the table.

    Args:
        logits (Tensor): (T, H, H), of masks in boxes.
        boxes (Tensor): (T, 4) float, XYXY, of one image.
        classes (Tensor): (T,) int64.
        others_at_once (int): bounds the memory.

    Returns:
        Tensor: (T, H, H) bool. Nothing is read from the device.
    """
    with full_precision(logits):
        own = logits.float().clamp(min=_MIN_LOGIT)
        low, sides = boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-5)
        num_cells = logits.shape[-1]
        centers = (torch.arange(num_cells, device=boxes.device) + 0.5) / num_cells
        centers = low[:, :, None] + sides[:, :, None] * centers  # T, (x, y), cells
        claims = torch.full_like(own, _MIN_LOGIT)
        index = torch.arange(len(boxes), device=boxes.device)
        for first in range(0, len(boxes), others_at_once):
            chunk = slice(first, first + others_at_once)
            # From -1 to 1 in the other box, as grid_sample wants it: others, T, (x, y), cells.
            places = (centers - low[chunk, None, :, None]) / sides[chunk, None, :, None]
            x, y = (2 * places - 1).unbind(2)
            grid = torch.stack(torch.broadcast_tensors(x[:, :, None, :], y[:, :, :, None]), dim=-1)
            # All T one below the other. Outside there are zeros.
            sampled = F.grid_sample(
                own[chunk, None] - _MIN_LOGIT, grid.flatten(1, 2), align_corners=False
            )
            sampled = sampled.view(-1, *own.shape) + _MIN_LOGIT
            is_rival = (classes[chunk, None] == classes) & (index[chunk, None] != index)
            sampled = sampled.masked_fill(~is_rival[:, :, None, None], _MIN_LOGIT)
            claims = torch.maximum(claims, sampled.amax(dim=0))
        return claims > own + _CLAIM


def _mean_iou(one, other):
    """0-dim mean over (T, H, W) bool masks; two empty masks count as 0."""
    union = (one | other).flatten(1).sum(dim=1)
    return ((one & other).flatten(1).sum(dim=1) / union.clamp(min=1)).mean()
