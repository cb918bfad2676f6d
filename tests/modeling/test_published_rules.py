"""The options of the published training: their rules, and that they reach RPN and RoI heads."""

import math

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
from contrastmask.modeling.published_rules import (
    ReassigningMatcher,
    TwoSidedClampBox2BoxTransform,
    build_box2box_transform,
)

WEIGHTS = (10.0, 10.0, 5.0, 4.0)


def reference_match(iou, positive, negative, min_iou):
    """The rule written with loops: thresholds first, then the ground truths in turn."""
    matches, labels = [], []
    for n in range(iou.shape[1]):
        best = iou[:, n].max().item()
        matches.append(iou[:, n].tolist().index(best))
        labels.append(1 if best >= positive else 0 if best < negative else -1)
    for m in range(iou.shape[0]):
        best = iou[m].max().item()
        for n in range(iou.shape[1]):
            if best >= min_iou and best > 0 and iou[m, n] == best:
                matches[n], labels[n] = m, 1
    return matches, labels


@pytest.mark.parametrize("min_iou", [0.0, 0.35, 0.75])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_rule_in_loops(min_iou, seed):
    rng = torch.Generator().manual_seed(seed)
    # Rounded, so that there are ties.
    iou = (torch.rand(5, 12, generator=rng) * 10).round() / 10
    iou[2] = 0
    matcher = ReassigningMatcher([0.25, 0.65], [0, -1, 1], min_iou=min_iou)
    matches, labels = matcher(iou)
    expected = reference_match(iou, 0.65, 0.25, min_iou)
    assert matches.tolist() == expected[0]
    assert labels.tolist() == expected[1] and labels.dtype == torch.int8


def test_box_goes_to_the_ground_truth_that_needs_it():
    # Box 0 overlaps ground truth 0 more, but is the best one ground truth 1 has.
    iou = torch.tensor([[0.8, 0.9, 0.0], [0.6, 0.1, 0.0]])
    plain, _ = Matcher([0.5], [0, 1])(iou)
    assert plain.tolist() == [0, 0, 0]
    matches, labels = ReassigningMatcher([0.5], [0, 1], min_iou=0.5)(iou)
    assert matches.tolist() == [1, 0, 0] and labels.tolist() == [1, 1, 0]
    matches, _ = ReassigningMatcher([0.5], [0, 1], min_iou=0.7)(iou)
    assert matches.tolist() == [0, 0, 0]


def test_ground_truth_boxes_belong_to_themselves():
    # Two identical ground truths; the last two columns are their own boxes.
    iou = torch.tensor([[0.8, 0.2, 1.0, 1.0], [0.8, 0.2, 1.0, 1.0]])
    matcher = ReassigningMatcher([0.5], [0, 1], min_iou=0.5, last_are_gt=True)
    matches, labels = matcher(iou)
    assert matches.tolist() == [1, 0, 0, 1] and labels.tolist() == [1, 0, 1, 1]
    matches, labels = matcher(iou[:, 2:])  # no other boxes
    assert matches.tolist() == [0, 1] and labels.tolist() == [1, 1]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_match(shape):
    matcher = ReassigningMatcher([0.5], [0, 1], min_iou=0.0)
    matches, labels = matcher(torch.zeros(shape))
    assert matches.shape == labels.shape == (shape[1],) and not labels.any()


def transform(two_sided):
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.MODEL.CLAMP_BOX_DELTAS_BELOW = two_sided
    return build_box2box_transform(cfg, WEIGHTS)


def test_ordinary_deltas_decode_as_in_detectron2():
    boxes = torch.tensor([[0.0, 10, 30, 50]]).repeat(9, 1)
    deltas = torch.randn(9, 12) * 5
    expected = Box2BoxTransform(WEIGHTS).apply_deltas(deltas, boxes)
    for two_sided in (True, False):
        assert torch.equal(transform(two_sided).apply_deltas(deltas, boxes), expected)
    assert transform(True).apply_deltas(torch.zeros(0, 8), torch.zeros(0, 4)).shape == (0, 8)


def test_sizes_do_not_shrink_without_limit():
    boxes = torch.tensor([[0.0, 0, 1000, 2000]])
    deltas = torch.tensor([[0.0, 0, -50, -80, 0, 0, 900, 900]])
    small, large = transform(True).apply_deltas(deltas, boxes).view(2, 4)
    torch.testing.assert_close(small[2:] - small[:2], torch.tensor([16.0, 32.0]))
    torch.testing.assert_close((large[2:] - large[:2])[0].item(), 1000 * 1000 / 16)
    shrunk = transform(False).apply_deltas(deltas, boxes)[0, :4]
    expected = torch.tensor([1000 * math.exp(-10), 2000 * math.exp(-20)])
    torch.testing.assert_close(shrunk[2:] - shrunk[:2], expected, atol=1e-3, rtol=0)


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
    heads_cfg.MODEL.RPN.BBOX_REG_WEIGHTS = (2.0, 3.0, 4.0, 5.0)
    heads_cfg.MODEL.RPN.IOU_THRESHOLDS, heads_cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.2, 0.6], [0.4]
    heads, rpn = build_heads(heads_cfg), build_rpn(heads_cfg)
    for transform, weights in (
        (heads.box_predictor.box2box_transform, (10.0, 10.0, 5.0, 5.0)),
        (rpn.box2box_transform, (2.0, 3.0, 4.0, 5.0)),
    ):
        assert type(transform) is TwoSidedClampBox2BoxTransform
        assert tuple(transform.weights) == weights
    for matcher, min_iou, thresholds, last_are_gt in (
        (rpn.anchor_matcher, 0.3, [0.2, 0.6], False),
        (heads.proposal_matcher, 0.5, [0.4], True),
    ):
        assert type(matcher) is ReassigningMatcher
        assert matcher.min_iou == min_iou and matcher.last_are_gt == last_are_gt
        assert matcher.thresholds[1:-1] == thresholds


def test_an_overlap_of_0_is_no_default(heads_cfg, build_heads, build_rpn):
    """-1 is off, 0 is on."""
    heads_cfg.MODEL.RPN.LOW_QUALITY_MIN_IOU = 0.0
    heads_cfg.MODEL.ROI_HEADS.LOW_QUALITY_MIN_IOU = 0.0
    assert type(build_heads(heads_cfg).proposal_matcher) is ReassigningMatcher
    assert type(build_rpn(heads_cfg).anchor_matcher) is ReassigningMatcher


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
