import pytest
import torch

from contrastmask.modeling.mask_head import crop_mask_targets


@pytest.mark.parametrize("masks", ["bitmask", "polygon"])
def test_equal_to_detectron2(make_batch, masks):
    _, proposals, (target, _) = make_batch(masks=masks)
    boxes = proposals[0].proposal_boxes.tensor
    index = torch.arange(len(boxes)) % len(target)
    ours = crop_mask_targets(target.gt_masks, index, boxes, 28)
    theirs = target.gt_masks[index].crop_and_resize(boxes, 28)
    assert ours.dtype == torch.bool and ours.any() and not ours.all()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("masks", ["bitmask", "polygon"])
def test_no_boxes(make_batch, masks):
    _, _, (target, _) = make_batch(masks=masks)
    none = torch.zeros(0, dtype=torch.int64)
    assert crop_mask_targets(target.gt_masks, none, torch.zeros(0, 4), 28).shape[0] == 0
