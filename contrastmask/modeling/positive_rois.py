"""Which RoIs the contrastive loss and the mask loss use."""

from typing import List, NamedTuple

import torch
from detectron2.layers import cat
from detectron2.structures import Boxes, Instances


class PositiveRoIs(NamedTuple):
    """
    The R positive RoIs of a batch, in the order of the images, and for which M of them masks are
    predicted and compared: S with their mask, and T with their box only.

    instances (list[Instances]): the RoIs of each image.
    index (Tensor): (R,) int64, their position among all sampled proposals of the batch.
    supervised (Tensor): (M,) int64, position of the M among the R.
    supervised_boxes (list[Boxes]): boxes of the M RoIs, for each image.
    with_mask (Tensor): (S,) int64, position of the S among the M.
    box_only (Tensor): (T,) int64, position of the T among the M.
    box_only_boxes (list[Boxes]): boxes of the T RoIs, for each image.
    """

    instances: List[Instances]
    index: torch.Tensor
    supervised: torch.Tensor
    supervised_boxes: List[Boxes]
    with_mask: torch.Tensor
    box_only: torch.Tensor
    box_only_boxes: List[Boxes]

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


def select_positive_rois(
    proposals, num_classes, gt_boxes_only, *, max_rois=0, box_supervision=False
):
    """
    Args:
        proposals (list[Instances]): the sampled proposals of each image, with `proposal_boxes`,
            `gt_classes`, `gt_has_mask` and `is_gt_box`.
        num_classes (int): number of foreground classes.
        gt_boxes_only (bool): let only ground-truth boxes supervise masks.
        max_rois (int): if there are more positive RoIs in the batch, take those that supervise
            masks, and a random choice of the others up to this number; 0 for all.
        box_supervision (bool): let ground-truth boxes without a mask supervise, too.

    Returns:
        PositiveRoIs. Their number is read from the device once for the whole batch.
    """
    classes = cat([x.gt_classes for x in proposals])
    has_mask = cat([x.gt_has_mask for x in proposals])
    is_gt_box = cat([x.is_gt_box for x in proposals])
    positive = (classes >= 0) & (classes < num_classes)
    with_mask = positive & has_mask
    if gt_boxes_only:
        with_mask = with_mask & is_gt_box
    box_only = positive & ~has_mask & is_gt_box & box_supervision
    positive, with_mask, box_only = torch.stack([positive, with_mask, box_only]).cpu()  # transfer
    supervised = with_mask | box_only
    if max_rois > 0:
        positive = _limit(positive, supervised, max_rois)

    device = classes.device
    lengths = [len(x) for x in proposals]

    def boxes_where(flags):
        parts = zip(proposals, flags.split(lengths))
        return [x.proposal_boxes[_where(part, device)] for x, part in parts]

    return PositiveRoIs(
        instances=[x[_where(p, device)] for x, p in zip(proposals, positive.split(lengths))],
        index=_where(positive, device),
        supervised=_where(supervised[positive], device),
        supervised_boxes=boxes_where(supervised),
        with_mask=_where(with_mask[supervised], device),
        box_only=_where(box_only[supervised], device),
        box_only_boxes=boxes_where(box_only),
    )


def _limit(positive, supervised, max_rois):
    others = (positive & ~supervised).nonzero()[:, 0]
    num_others = max(max_rois - int(supervised.sum()), 0)
    limited = supervised.clone()
    limited[others[torch.randperm(len(others))[:num_others]]] = True
    return limited


def _where(flags, device):
    return flags.nonzero()[:, 0].to(device, non_blocking=True)
