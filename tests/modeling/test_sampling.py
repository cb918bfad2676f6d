"""Which RoIs a training step has, and which of them learn what."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastmask.modeling.sampling import choose_rois, ground_truth_of_boxes, include_gt_boxes


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
def test_ground_truth_boxes_in_the_roi_heads(include, heads_cfg, build_heads, make_batch):
    heads_cfg.MODEL.ROI_HEADS.INCLUDE_GT_BOXES = include
    # Of 4 ground-truth boxes (of 3) and as many boxes beside them, half of 8 samples are positive.
    heads_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    heads_cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 0.5
    heads = build_heads(heads_cfg)
    _, proposals, targets = make_batch(num_images=8, num_boxes=(4, 3))
    with EventStorage():
        sampled = heads.label_and_sample_proposals(proposals, targets)
    num_gt_boxes = [int(x.is_gt_box.sum()) for x in sampled]
    assert (num_gt_boxes == [4, 3] * 4) == include
    for x, target in zip(sampled, targets):
        assert len(x) == 8
        boxes = target.gt_boxes.tensor
        assert torch.equal(x.proposal_boxes.tensor[x.is_gt_box], boxes[x.gt_index[x.is_gt_box]])
        positive = x.gt_classes < 5
        assert positive.sum() == 4
        matched = x.gt_index[positive]
        assert torch.equal(x.gt_classes[positive], target.gt_classes[matched])
        assert torch.equal(x.gt_has_mask[positive], target.gt_has_mask[matched])


def test_ground_truth_boxes_are_known_by_origin_not_by_value(heads_cfg, build_heads, make_batch):
    _, proposals, targets = make_batch(num_images=1)
    proposals[0].proposal_boxes.tensor[:5] = targets[0].gt_boxes.tensor  # they hit exactly
    heads_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 1000
    heads_cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 1.0
    heads = build_heads(heads_cfg)
    with EventStorage():
        (sampled,) = heads.label_and_sample_proposals(proposals, targets)
    assert sampled.is_gt_box.sum() == 5
    boxes = sampled.proposal_boxes.tensor[sampled.is_gt_box].sort(dim=0).values
    assert torch.equal(boxes, targets[0].gt_boxes.tensor.sort(dim=0).values)


def test_an_image_without_ground_truth(heads_cfg, build_heads, make_batch):
    heads = build_heads(heads_cfg)
    _, proposals, targets = make_batch(num_boxes=(0, 3))
    with EventStorage():
        empty, other = heads.label_and_sample_proposals(proposals, targets)
    assert len(empty) > 0 and (empty.gt_classes == 5).all()
    assert not (empty.gt_has_mask.any() or empty.gt_index.any() or empty.is_gt_box.any())
    assert set(empty.get_fields()) <= set(other.get_fields())


def test_ground_truth_of_boxes(make_batch):
    _, _, (target, _) = make_batch()
    target.gt_note = torch.arange(5)
    light = ground_truth_of_boxes(target)
    assert set(light.get_fields()) == set(target.get_fields()) - {"gt_masks"} | {"gt_index"}
    assert light.gt_index.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(light.gt_has_mask, target.gt_has_mask)
    target.remove("gt_has_mask")
    assert ground_truth_of_boxes(target).gt_has_mask.tolist() == [True] * 5
    target.remove("gt_masks")
    assert ground_truth_of_boxes(target).gt_has_mask.tolist() == [False] * 5


# Class (9: background, -1: ignored), has a mask, is a ground-truth box; for each image.
PROPOSALS = [
    [(9, 0, 0), (0, 1, 1), (3, 0, 0), (3, 0, 1), (-1, 1, 1), (8, 1, 0), (2, 0, 1)],
    [(9, 1, 1)],
    [(1, 0, 0), (5, 1, 1), (7, 1, 0)],
]


@pytest.fixture
def proposals():
    result = []
    for k, rows in enumerate(PROPOSALS):
        x = Instances((50 + k, 70))
        classes, has_mask, is_gt_box = torch.tensor(rows).unbind(1)
        number = torch.arange(len(rows)) + 10.0 * k
        x.proposal_boxes = Boxes(torch.stack([number, number, number + 3, number + 5], dim=1))
        x.gt_classes, x.gt_has_mask, x.is_gt_box = classes, has_mask.bool(), is_gt_box.bool()
        x.gt_index = torch.arange(len(rows)).flip(0)
        x.objectness_logits = torch.zeros(len(rows))
        result.append(x)
    return result


@pytest.mark.parametrize(
    "gt_boxes_only, box_only, with_mask, without",
    [
        (True, False, [1, 9], []),
        (True, True, [1, 9], [3, 6]),
        (False, False, [1, 5, 9, 10], []),
        (False, True, [1, 5, 9, 10], [3, 6]),
    ],
)
def test_groups_of_rois(proposals, gt_boxes_only, box_only, with_mask, without):
    """Positions in the batch follow from the indices of the groups, one in the other."""
    rois = choose_rois(proposals, 9, gt_boxes_only=gt_boxes_only, box_only=box_only)
    positive = rois.positive.index
    assert positive.tolist() == [1, 2, 3, 5, 6, 8, 9, 10]
    supervised = positive[rois.supervised.index]
    assert supervised.tolist() == sorted(with_mask + without)
    assert supervised[rois.with_mask.index].tolist() == with_mask
    assert supervised[rois.box_only.index].tolist() == without
    every = Instances.cat([Instances((1, 1), **x.get_fields()) for x in proposals])
    groups = {
        "positive": positive,
        "supervised": supervised,
        "with_mask": torch.tensor(with_mask),
        "box_only": torch.tensor(without, dtype=torch.int64),
    }
    for name, index in groups.items():
        group = getattr(rois, name)
        assert len(group) == len(index), name
        assert torch.equal(Boxes.cat(group.boxes).tensor, every.proposal_boxes.tensor[index]), name
        assert torch.equal(group.classes, every.gt_classes[index]), name
        assert torch.equal(group.has_mask, every.gt_has_mask[index]), name
        gt_index = torch.cat([x.gt_index for x in group.instances])
        assert torch.equal(gt_index, every.gt_index[index]), name
        assert [x.image_size for x in group.instances] == [x.image_size for x in proposals]
        of_image = [int(((index >= low) & (index < high)).sum()) for low, high in ((0, 7), (7, 8))]
        assert [len(x) for x in group.instances][:2] == of_image, name


@pytest.mark.parametrize("max_rois, number", [(1, 4), (4, 4), (5, 5), (7, 7), (8, 8), (100, 8)])
def test_cap_of_the_positive_rois(proposals, max_rois, number):
    """Those that supervise masks stay, the others are drawn at random."""
    others = set()
    for seed in range(12):
        torch.manual_seed(seed)
        rois = choose_rois(proposals, 9, gt_boxes_only=True, box_only=True, max_rois=max_rois)
        positive = rois.positive.index
        assert len(positive) == number
        assert positive.tolist() == sorted(set(positive.tolist()))
        assert positive[rois.supervised.index].tolist() == [1, 3, 6, 9]
        others |= set(positive.tolist()) - {1, 3, 6, 9}
    assert others == (set() if number == 4 else {2, 5, 8, 10})


def test_the_cap_comes_from_the_config(heads_cfg, build_heads, run_heads):
    heads_cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 0.5
    heads_cfg.MODEL.ROI_HEADS.INCLUDE_GT_BOXES = True
    expected, storage = run_heads(build_heads(heads_cfg))
    scalars = {k: v for k, (v, _) in storage.latest().items()}
    assert scalars["contrastive/num_rois"] > 7 > scalars["mask_head/num_rois"] == 5
    heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.MAX_ROIS = 7
    losses, storage = run_heads(build_heads(heads_cfg))
    assert storage.latest()["contrastive/num_rois"][0] == 7
    torch.testing.assert_close(losses["loss_mask"], expected["loss_mask"])
    assert torch.isfinite(sum(losses.values()))


def test_mask_loss_uses_ground_truth_boxes_of_base_instances(heads_cfg, build_heads, run_heads):
    heads_cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 1.0  # so that no positive is sampled away
    heads_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 40
    _, storage = run_heads(build_heads(heads_cfg))
    # 3 and 2 base instances; the moved boxes are positive, too, but are proposals.
    assert storage.latest()["mask_head/num_rois"][0] == 5
    positives = storage.latest()["contrastive/num_rois"][0]
    heads_cfg.MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY = False
    _, storage = run_heads(build_heads(heads_cfg))
    assert 5 < storage.latest()["mask_head/num_rois"][0] < positives
