import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances

from contrastmask.modeling.box_head import ContrastMaskBoxHead, ContrastMaskBoxPredictor

SHAPE = ShapeSpec(channels=16, height=7, width=7)


def test_every_key_reaches_the_head(heads_cfg):
    keys = heads_cfg.MODEL.ROI_BOX_HEAD
    keys.NUM_CONV, keys.NUM_CLS_CONV, keys.NUM_REG_CONV = 2, 4, 3
    keys.CONV_DIM, keys.NORM = 13, "FrozenBN"
    head = ContrastMaskBoxHead(heads_cfg, SHAPE)
    stacks = (head.shared, head.cls_branch, head.reg_branch)
    assert [len(x) for x in stacks] == [2, 4, 3]
    for conv in (x for stack in stacks for x in stack):
        assert conv.out_channels == 13 and type(conv.norm).__name__ == "FrozenBatchNorm2d"
    assert head.output_shape.channels == 13


@pytest.mark.parametrize("num_conv, num_cls, num_reg", [(0, 2, 1), (1, 0, 2), (1, 0, 0), (0, 0, 0)])
def test_branches_in_words(heads_cfg, num_conv, num_cls, num_reg):
    keys = heads_cfg.MODEL.ROI_BOX_HEAD
    keys.NUM_CONV, keys.NUM_CLS_CONV, keys.NUM_REG_CONV = num_conv, num_cls, num_reg
    head = ContrastMaskBoxHead(heads_cfg, SHAPE)
    x = torch.randn(3, 16, 7, 7)
    features = head(x)
    shared = head.shared(x)
    torch.testing.assert_close(features.class_map, head.cls_branch(shared))
    torch.testing.assert_close(features.class_vector, features.class_map.mean(dim=(2, 3)))
    torch.testing.assert_close(features.box_vector, head.reg_branch(shared).mean(dim=(2, 3)))
    assert features.class_vector.shape == (3, head.output_shape.channels)
    assert head.output_shape.channels == (16 if num_conv + num_cls == 0 else 12)


@pytest.mark.parametrize("num_cls, num_reg", [(0, 2), (1, 0)])
def test_branches_of_different_widths(heads_cfg, num_cls, num_reg):
    keys = heads_cfg.MODEL.ROI_BOX_HEAD
    keys.NUM_CONV, keys.NUM_CLS_CONV, keys.NUM_REG_CONV = 0, num_cls, num_reg
    with pytest.raises(ValueError, match="NUM_CLS_CONV.*NUM_REG_CONV"):
        ContrastMaskBoxHead(heads_cfg, SHAPE)


@pytest.mark.parametrize("agnostic", [True, False])
def test_detections_are_those_of_detectron2(heads_cfg, agnostic):
    heads_cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = agnostic
    heads_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS = (9.0, 8.0, 7.0, 6.0)
    heads_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.15
    heads_cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.45
    heads_cfg.TEST.DETECTIONS_PER_IMAGE = 11
    predictor = ContrastMaskBoxPredictor(heads_cfg, ShapeSpec(channels=12))
    assert predictor.box2box_transform.weights == (9.0, 8.0, 7.0, 6.0)
    proposals, numbers = [], (40, 6)
    for k, number in enumerate(numbers):
        low = torch.rand(number, 2) * 40
        proposals.append(Instances((70, 90 + k)))
        proposals[-1].proposal_boxes = Boxes(torch.cat([low, low + 10 + torch.rand(number, 2)], 1))
    scores, deltas = torch.randn(46, 6) * 2, torch.randn(46, 4 if agnostic else 20)
    found, kept = predictor.inference((scores, deltas), proposals)
    expected, _ = FastRCNNOutputLayers.inference(predictor, (scores, deltas), proposals)
    assert len(found[0]) == 11 > len(found[1]) > 3
    for x, y in zip(found, expected):
        assert x.image_size == y.image_size
        assert torch.equal(x.pred_boxes.tensor, y.pred_boxes.tensor)
        assert torch.equal(x.scores, y.scores) and torch.equal(x.pred_classes, y.pred_classes)
        assert x.scores.min() > 0.15
    assert found[1].scores.min() < 0.45
    probabilities = scores.softmax(dim=1).split(numbers)
    for x, index, p in zip(found, kept, probabilities):
        assert torch.equal(x.scores, p[index, x.pred_classes])
