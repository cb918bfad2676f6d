"""That the options of the published training reach the RPN and the RoI heads."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from contrastmask import add_contrastmask_config
from contrastmask.modeling.box_regression import TwoSidedClampBox2BoxTransform
from contrastmask.modeling.matcher import ReassigningMatcher


@pytest.fixture
def build_rpn():
    def build(cfg):
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "ContrastMaskRPN"
        cfg.MODEL.RPN.IN_FEATURES = ["p2"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32]]
        return build_proposal_generator(cfg, {"p2": ShapeSpec(channels=16, stride=4)})

    return build


def test_defaults_are_those_of_detectron2(heads_cfg, build_heads, build_rpn):
    heads, rpn = build_heads(heads_cfg), build_rpn(heads_cfg)
    for transform in (heads.box_predictor.box2box_transform, rpn.box2box_transform):
        assert type(transform) is Box2BoxTransform
    assert type(heads.proposal_matcher) is Matcher and type(rpn.anchor_matcher) is Matcher
    assert rpn.anchor_matcher.allow_low_quality_matches


def test_options(heads_cfg, build_heads, build_rpn):
    heads_cfg.MODEL.CLAMP_BOX_DELTAS_BELOW = True
    heads_cfg.MODEL.RPN.LOW_QUALITY_MIN_IOU = 0.3
    heads_cfg.MODEL.ROI_HEADS.LOW_QUALITY_MIN_IOU = 0.5
    heads, rpn = build_heads(heads_cfg), build_rpn(heads_cfg)
    for transform, weights in (
        (heads.box_predictor.box2box_transform, (10.0, 10.0, 5.0, 5.0)),
        (rpn.box2box_transform, (1.0, 1.0, 1.0, 1.0)),
    ):
        assert type(transform) is TwoSidedClampBox2BoxTransform
        assert tuple(transform.weights) == weights
    assert type(rpn.anchor_matcher) is ReassigningMatcher
    assert (rpn.anchor_matcher.min_iou, rpn.anchor_matcher.last_are_gt) == (0.3, False)
    assert heads.proposal_matcher.min_iou == 0.5


@pytest.mark.parametrize("append_gt", [True, False])
def test_proposals_of_roi_heads(heads_cfg, build_heads, append_gt):
    heads_cfg.MODEL.ROI_HEADS.LOW_QUALITY_MIN_IOU = 0.5
    heads_cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = append_gt
    heads_cfg.MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY = append_gt
    heads = build_heads(heads_cfg)
    target, proposal = Instances((96, 96)), Instances((96, 96))
    # The proposal overlaps ground truth 0 by 0.8 and ground truth 1, whose best it is, by 0.625.
    target.gt_boxes = Boxes(torch.tensor([[0.0, 0, 40, 40], [0.0, 0, 40, 20]]))
    target.gt_classes = torch.tensor([1, 2])
    target.gt_has_mask = torch.zeros(2, dtype=torch.bool)
    proposal.proposal_boxes = Boxes(torch.tensor([[0.0, 0, 40, 32], [0.0, 0, 40, 38]]))
    proposal.objectness_logits = torch.zeros(2)
    with EventStorage():
        (sampled,) = heads.label_and_sample_proposals([proposal], [target])
    boxes = [tuple(b.tolist()) for b in sampled.proposal_boxes]
    classes = dict(zip(boxes, sampled.gt_classes.tolist()))
    assert classes[0, 0, 40, 32] == 2 and classes[0, 0, 40, 38] == 1
    assert len(classes) == (4 if append_gt else 2)


def test_anchors_of_the_published_models():
    """Sides stride * 8 * sqrt(ratio), ratios 0.5, 1, 2 in this order, around the origin."""
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.merge_from_file("configs/COCO/Base-Published.yaml")
    strides = (4, 8, 16, 32, 64)
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=s) for s in strides])
    for stride, anchors in zip(strides, generator.cell_anchors):
        heights = stride * 8 * torch.tensor([0.5, 1, 2]).sqrt()
        widths = stride * 8 / torch.tensor([0.5, 1, 2]).sqrt()
        expected = torch.stack([-widths, -heights, widths, heights], dim=1) / 2
        torch.testing.assert_close(anchors, expected, rtol=1e-6, atol=0)
    features = [torch.zeros(1, 1, 2, 3)] * 5
    grid = generator(features)[1].tensor.view(2, 3, 3, 4)  # rows, columns, ratios
    shift = torch.tensor([2 * 8, 8, 2 * 8, 8.0])
    torch.testing.assert_close(grid[1, 2], list(generator.cell_anchors)[1] + shift)
