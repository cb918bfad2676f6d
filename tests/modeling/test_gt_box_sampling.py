"""Ground-truth boxes among the sampled RoIs."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastmask.modeling.gt_box_sampling import include_gt_boxes


def test_missing_ones_take_the_place_of_positive_proposals():
    # Proposals 0..9, of which 7, 8 and 9 are ground-truth boxes.
    sampled = torch.tensor([3, 8, 5, 1, 0, 2])
    is_positive = torch.tensor([True, True, True, True, False, False])
    result = include_gt_boxes(sampled, is_positive, 10, 3)
    assert result.tolist() == [7, 8, 9, 1, 0, 2]


def test_fewer_positive_samples_than_boxes():
    sampled, is_positive = torch.tensor([3, 0]), torch.tensor([True, False])
    assert include_gt_boxes(sampled, is_positive, 8, 4).tolist() == [4, 0]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(0, 9), st.integers(0, 12), st.integers(0, 2**31))
def test_all_boxes_as_far_as_there_is_room(num_gt, num_others, num_sampled, seed):
    generator = torch.Generator().manual_seed(seed)
    num = num_others + num_gt
    # Ground-truth boxes are positive; of the other proposals, the first half.
    positives = torch.arange(num) < num_others // 2
    positives[num_others:] = True
    sampled = torch.randperm(num, generator=generator)[:num_sampled]
    result = include_gt_boxes(sampled, positives[sampled], num, num_gt)
    assert len(result.unique()) == len(sampled)
    assert torch.equal(positives[result], positives[sampled])
    num_positive = int(positives[sampled].sum())
    assert int((result >= num_others).sum()) == min(num_gt, num_positive)
    kept = positives[result] & (result < num_others)
    assert set(result[kept].tolist()) <= set(sampled.tolist())


@pytest.mark.parametrize("include", [True, False])
def test_roi_heads(include, heads_cfg, build_heads, make_batch):
    heads_cfg.MODEL.ROI_HEADS.INCLUDE_GT_BOXES = include
    # 2 of 4 ground-truth boxes and 4 boxes beside them are positive, half of 8 are sampled.
    heads_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    heads_cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 0.5
    heads = build_heads(heads_cfg)
    _, proposals, targets = make_batch(num_images=8)
    with EventStorage():
        sampled = heads.label_and_sample_proposals(proposals, targets)
    num_gt_boxes = [int(x.is_gt_box.sum()) for x in sampled]
    assert (num_gt_boxes == [4] * 8) == include
    for x, target in zip(sampled, targets):
        assert len(x) == 8
        boxes = target.gt_boxes.tensor
        assert torch.equal(x.proposal_boxes.tensor[x.is_gt_box], boxes[x.gt_index[x.is_gt_box]])
        assert torch.equal(x.gt_classes[x.is_gt_box], target.gt_classes[x.gt_index[x.is_gt_box]])
        assert (x.gt_classes < 5).sum() == 4


def test_needs_the_boxes_among_the_proposals(heads_cfg, build_heads):
    heads_cfg.MODEL.ROI_HEADS.INCLUDE_GT_BOXES = True
    heads_cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = False
    heads_cfg.MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY = False
    with pytest.raises(ValueError, match="INCLUDE_GT_BOXES needs"):
        build_heads(heads_cfg)
