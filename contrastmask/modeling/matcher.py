"""Matching of boxes to ground truth with MMDetection's rule for low-quality matches."""

import torch
from detectron2.modeling.matcher import Matcher


class ReassigningMatcher(Matcher):
    """
    After Detectron2's rule by thresholds, each ground truth takes the boxes that overlap it most,
    if that overlap reaches `min_iou`: they become positive and belong to it, even where they
    overlap another ground truth more. Among several such ground truths the last one takes a box.
    """

    def __init__(self, thresholds, labels, *, min_iou, last_are_gt=False):
        """
        Args:
            thresholds (list[float]), labels (list[int]): as in :class:`Matcher`.
            min_iou (float): smallest overlap of a match by this rule.
            last_are_gt (bool): the last M of the N boxes are the M ground-truth boxes themselves.
                Each belongs to itself, and they do not compete with the other boxes.
        """
        super().__init__(list(thresholds), list(labels), allow_low_quality_matches=False)
        self.min_iou = min_iou
        self.last_are_gt = last_are_gt

    def __call__(self, match_quality_matrix):
        """
        Args:
            match_quality_matrix (Tensor): (M, N) overlaps of M ground truths and N boxes.

        Returns:
            tuple[Tensor, Tensor]: matches (N,) int64 in [0, M), and labels (N,) int8.
        """
        matches, labels = super().__call__(match_quality_matrix)
        num_gt, num_boxes = match_quality_matrix.shape
        if num_gt == 0 or num_boxes == 0:
            return matches, labels
        if self.last_are_gt:
            matches[num_boxes - num_gt :] = torch.arange(num_gt, device=matches.device)
            labels[num_boxes - num_gt :] = 1
            match_quality_matrix = match_quality_matrix[:, : num_boxes - num_gt]
            if match_quality_matrix.shape[1] == 0:
                return matches, labels
        best = match_quality_matrix.amax(dim=1, keepdim=True)
        takes = (match_quality_matrix == best) & (best >= self.min_iou) & (best > 0)
        gt_index = torch.arange(num_gt, dtype=torch.int32, device=matches.device)[:, None]
        last = torch.full_like(matches, -1)
        last[: takes.shape[1]] = torch.where(takes, gt_index, -1).amax(dim=0)
        taken = last >= 0
        return torch.where(taken, last, matches), labels.masked_fill(taken, 1)
