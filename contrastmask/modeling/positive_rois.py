"""Which RoIs the contrastive loss and the mask loss use."""

from typing import List, NamedTuple

import torch
from detectron2.layers import cat
from detectron2.structures import Boxes, Instances


class PositiveRoIs(NamedTuple):
    """
    The R positive RoIs of a batch, in the order of the images, and which S of them supervise masks.

    instances (list[Instances]): the RoIs of each image.
    index (Tensor): (R,) int64, their position among all sampled proposals of the batch.
    supervised (Tensor): (S,) int64, position among the R of those the mask loss uses.
    supervised_boxes (list[Boxes]): boxes of the S RoIs, for each image.
    """

    instances: List[Instances]
    index: torch.Tensor
    supervised: torch.Tensor
    supervised_boxes: List[Boxes]

    def __len__(self):
        return len(self.index)

    @property
    def boxes(self):
        """list[Boxes]: boxes of the R RoIs, for each image."""
        return [x.proposal_boxes for x in self.instances]

    @property
    def classes(self):
        """Tensor: (R,) int64."""
        return cat([x.gt_classes for x in self.instances])

    @property
    def has_mask(self):
        """Tensor: (R,) bool."""
        return cat([x.gt_has_mask for x in self.instances])


def select_positive_rois(proposals, num_classes, gt_boxes_only, max_rois=0):
    """
    Args:
        proposals (list[Instances]): the sampled proposals of each image, with `proposal_boxes`,
            `gt_classes`, `gt_has_mask` and `is_gt_box`.
        num_classes (int): number of foreground classes.
        gt_boxes_only (bool): let only ground-truth boxes supervise masks.
        max_rois (int): if there are more positive RoIs in the batch, take those that supervise
            masks, and a random choice of the others up to this number; 0 for all.

    Returns:
        PositiveRoIs. Their number is read from the device once for the whole batch.
    """
    classes = cat([x.gt_classes for x in proposals])
    positive = (classes >= 0) & (classes < num_classes)
    supervised = positive & cat([x.gt_has_mask for x in proposals])
    if gt_boxes_only:
        supervised = supervised & cat([x.is_gt_box for x in proposals])
    flags = torch.stack([positive, supervised]).cpu()  # the one transfer

    device = classes.device
    lengths = [len(x) for x in proposals]
    positive, supervised = flags
    if max_rois > 0:
        positive = _limit(positive, supervised, max_rois)
    instances, supervised_boxes = [], []
    for x, pos, sup in zip(proposals, positive.split(lengths), supervised.split(lengths)):
        instances.append(x[_where(pos, device)])
        supervised_boxes.append(x.proposal_boxes[_where(sup, device)])
    return PositiveRoIs(
        instances, _where(positive, device), _where(supervised[positive], device), supervised_boxes
    )


def _limit(positive, supervised, max_rois):
    others = (positive & ~supervised).nonzero()[:, 0]
    num_others = max(max_rois - int(supervised.sum()), 0)
    limited = supervised.clone()
    limited[others[torch.randperm(len(others))[:num_others]]] = True
    return limited


def _where(flags, device):
    return flags.nonzero()[:, 0].to(device, non_blocking=True)
