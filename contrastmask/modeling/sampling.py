"""
RoIs of a training step: what they know of their ground truth, which of the ground-truth boxes are
among them, and which of them learn what.

A batch has P sampled proposals. The groups below are parts of each other, and the `index` of a
group counts in the group that it is a part of:

    P  sampled proposals      box head
    R  positive, of P         contrastive loss
    M  supervised, of R       mask head: their masks are predicted
    S  with mask, of M        mask loss
    T  box only, of M         box supervision, self-training; M = S + T
"""

from dataclasses import dataclass

import torch
from detectron2.layers import cat
from detectron2.structures import Boxes, Instances

# What the losses of masks look at. The other fields of proposals are not copied.
_FIELDS = ("proposal_boxes", "gt_classes", "gt_index", "gt_has_mask")


@dataclass(frozen=True)
class RoIs:
    """
    A group of RoIs, in the order of the images.

    instances (list[Instances]): those of each image, with `proposal_boxes`, `gt_classes`,
        `gt_index` and `gt_has_mask`.
    index (Tensor): (N,) int64, their positions in the group that they are a part of.
    """

    instances: list[Instances]
    index: torch.Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def boxes(self) -> list[Boxes]:
        """list[Boxes]: of each image."""
        return [x.proposal_boxes for x in self.instances]

    @property
    def classes(self) -> torch.Tensor:
        """Tensor: (N,) int64."""
        return cat([x.gt_classes for x in self.instances])

    @property
    def has_mask(self) -> torch.Tensor:
        """Tensor: (N,) bool."""
        return cat([x.gt_has_mask for x in self.instances])


@dataclass(frozen=True)
class TrainingRoIs:
    """The groups R, M, S and T of a batch, as the head of this file explains them."""

    positive: RoIs
    supervised: RoIs
    with_mask: RoIs
    box_only: RoIs


def choose_rois(
    proposals: list[Instances],
    num_classes: int,
    *,
    gt_boxes_only: bool,
    box_only: bool = False,
    max_rois: int = 0,
) -> TrainingRoIs:
    """
    Args:
        proposals (list[Instances]): the sampled proposals of each image, with `proposal_boxes`,
            `gt_classes`, `gt_index`, `gt_has_mask` and `is_gt_box`.
        num_classes (int): number of foreground classes.
        gt_boxes_only (bool): of the RoIs with a mask, only ground-truth boxes supervise masks.
        box_only (bool): ground-truth boxes without a mask supervise, too.
        max_rois (int): if there are more positive RoIs in the batch, take those that supervise
            masks, and a random choice of the others up to this number; 0 for all.

    Returns:
        TrainingRoIs: the flags that they follow from are read from the device once.
    """
    classes = cat([x.gt_classes for x in proposals])
    has_mask = cat([x.gt_has_mask for x in proposals])
    is_gt_box = cat([x.is_gt_box for x in proposals])
    positive = (classes >= 0) & (classes < num_classes)
    with_mask = positive & has_mask
    if gt_boxes_only:
        with_mask = with_mask & is_gt_box
    without_mask = positive & ~has_mask & is_gt_box & box_only
    positive, with_mask, without_mask = torch.stack([positive, with_mask, without_mask]).cpu()
    supervised = with_mask | without_mask
    if max_rois > 0:
        positive = _limit(positive, supervised, max_rois)

    device = classes.device
    lengths = [len(x) for x in proposals]
    proposals = [Instances(x.image_size, **{k: x.get(k) for k in _FIELDS}) for x in proposals]

    def group(chosen, index):
        instances = [x[_where(c, device)] for x, c in zip(proposals, chosen.split(lengths))]
        return RoIs(instances, _where(index, device))

    return TrainingRoIs(
        positive=group(positive, positive),
        supervised=group(supervised, supervised[positive]),
        with_mask=group(with_mask, with_mask[supervised]),
        box_only=group(without_mask, without_mask[supervised]),
    )


def ground_truth_of_boxes(targets: Instances) -> Instances:
    """
    Ground truth of one image without its masks, which are looked up by `gt_index` where they are
    needed instead of being copied for every sampled proposal. Without `gt_has_mask`, as from
    Detectron2's own mapper, every instance has a mask if there are masks at all.

    Args:
        targets (Instances): G, with or without `gt_masks` and `gt_has_mask`.

    Returns:
        Instances: the other fields, `gt_index` (G,) int64 and `gt_has_mask` (G,) bool.
    """
    fields = targets.get_fields()
    device = targets.gt_boxes.device
    light = Instances(targets.image_size, **{k: v for k, v in fields.items() if k != "gt_masks"})
    light.gt_index = torch.arange(len(targets), device=device)
    if not light.has("gt_has_mask"):
        has_masks = "gt_masks" in fields
        light.gt_has_mask = torch.full((len(targets),), has_masks, device=device)
    return light


def include_gt_boxes(
    sampled: torch.Tensor, is_positive: torch.Tensor, num_proposals: int, num_gt: int
) -> torch.Tensor:
    """
    Replace positive samples by ground-truth boxes that were not sampled, so that all of them are
    there, or as many as there are positive samples. The others were drawn at random, so which of
    them are replaced is random as well.

    Args:
        sampled (Tensor): (B,) int64, indices of the sampled proposals of one image.
        is_positive (Tensor): (B,) bool.
        num_proposals (int): proposals of the image, of which the last are the ground-truth boxes.
        num_gt (int): number of ground-truth boxes, at least 1.

    Returns:
        Tensor: (B,) int64. Nothing is read from the device.
    """
    first_gt = num_proposals - num_gt
    is_gt = sampled >= first_gt
    times_sampled = torch.zeros(num_gt, dtype=torch.int64, device=sampled.device)
    times_sampled.index_add_(0, (sampled - first_gt).clamp(min=0), is_gt.long())
    missing = times_sampled == 0
    missing_first = missing.long().argsort(descending=True, stable=True) + first_gt
    replaceable = is_positive & ~is_gt
    number = replaceable.cumsum(dim=0) - 1  # of the sample among those that can be replaced
    replaced = replaceable & (number < missing.sum())
    return torch.where(replaced, missing_first[number.clamp(0, num_gt - 1)], sampled)


def _limit(positive, supervised, max_rois):
    others = (positive & ~supervised).nonzero()[:, 0]
    num_others = max(max_rois - int(supervised.sum()), 0)
    limited = supervised.clone()
    limited[others[torch.randperm(len(others))[:num_others]]] = True
    return limited


def _where(flags, device):
    return flags.nonzero()[:, 0].to(device, non_blocking=True)
