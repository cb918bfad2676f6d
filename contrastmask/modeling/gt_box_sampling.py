"""Ground-truth boxes among the sampled RoIs."""

import torch


def include_gt_boxes(sampled, is_positive, num_proposals, num_gt):
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
