"""
Rules of MMDetection that the published models were trained with, where Detectron2 has others: all
of them are options, off by default. The ResNet of the published models is in `backbone`.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN


class ReassigningMatcher(Matcher):
    """
    After Detectron2's rule by thresholds, each ground truth takes the boxes that overlap it most,
    if that overlap reaches `min_iou`: they become positive and belong to it, even where they
    overlap another ground truth more. Among several such ground truths the last one takes a box.
    """

    def __init__(
        self,
        thresholds: Sequence[float],
        labels: Sequence[int],
        *,
        min_iou: float,
        last_are_gt: bool = False,
    ):
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

    def __call__(self, match_quality_matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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


class TwoSidedClampBox2BoxTransform(Box2BoxTransform):
    """
    Clamps the log-size deltas from below too, at the negative of `scale_clamp` (Detectron2 clamps
    from above only): no box shrinks to less than 16/1000 of its source.
    """

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """
        Args:
            deltas (Tensor): (N, 4k), k deltas (dx, dy, dw, dh) for each box.
            boxes (Tensor): (N, 4) XYXY.

        Returns:
            Tensor: (N, 4k) float32, the decoded boxes.
        """
        dx, dy, dw, dh = deltas.float().unflatten(1, (-1, 4)).unbind(2)
        dw = dw.clamp(min=-self.scale_clamp * self.weights[2])
        dh = dh.clamp(min=-self.scale_clamp * self.weights[3])
        return super().apply_deltas(torch.stack([dx, dy, dw, dh], dim=2).flatten(1), boxes)


def build_box2box_transform(cfg: CfgNode, weights: Sequence[float]) -> Box2BoxTransform:
    """
    Args:
        cfg (CfgNode): ``MODEL.CLAMP_BOX_DELTAS_BELOW`` is used.
        weights (tuple[float]): of the deltas dx, dy, dw, dh.

    Returns:
        Box2BoxTransform
    """
    two_sided = cfg.MODEL.CLAMP_BOX_DELTAS_BELOW
    return (TwoSidedClampBox2BoxTransform if two_sided else Box2BoxTransform)(weights=weights)


@PROPOSAL_GENERATOR_REGISTRY.register()
class ContrastMaskRPN(RPN):
    """
    Detectron2's :class:`RPN`, to which ``MODEL.CLAMP_BOX_DELTAS_BELOW`` and
    ``MODEL.RPN.LOW_QUALITY_MIN_IOU`` apply.
    """

    @classmethod
    def from_config(cls, cfg, input_shape):
        rpn = cfg.MODEL.RPN
        ret = super().from_config(cfg, input_shape)
        ret["box2box_transform"] = build_box2box_transform(cfg, rpn.BBOX_REG_WEIGHTS)
        if rpn.LOW_QUALITY_MIN_IOU >= 0:
            ret["anchor_matcher"] = ReassigningMatcher(
                rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, min_iou=rpn.LOW_QUALITY_MIN_IOU
            )
        return ret
