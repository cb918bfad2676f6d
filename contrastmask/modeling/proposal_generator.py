"""Detectron2's region proposal network with the options of the published training."""

from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN

from .box_regression import build_box2box_transform
from .matcher import ReassigningMatcher


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
