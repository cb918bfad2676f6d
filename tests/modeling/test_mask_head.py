import pytest
import torch
from detectron2.structures import BitMasks

from contrastmask.modeling.mask_head import crop_mask_targets, mask_error_rates, mask_loss


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


def test_a_cell_that_is_half_covered_counts():
    """As in Detectron2; the mask is every second column, a cell two pixels wide."""
    mask = torch.zeros(1, 4, 8, dtype=torch.bool)
    mask[:, :, 1::2] = True
    mask[:, 3] = False
    masks, boxes = BitMasks(mask), torch.tensor([[0.0, 0, 8, 4]])
    index = torch.zeros(1, dtype=torch.int64)
    targets = crop_mask_targets(masks, index, boxes, 4)
    assert torch.equal(targets, masks.crop_and_resize(boxes, 4))
    assert targets[0, :3].all() and not targets[0, 3].any()


def test_mask_loss_and_rates_in_words():
    logits = torch.tensor([[2.0, -1.0, 0.0], [0.5, -3.0, 4.0]])[None, None]
    targets = torch.tensor([[[True, True, False], [False, False, True]]])
    p = logits.sigmoid().flatten()
    t = targets.flatten()
    expected = -torch.where(t, p.log(), (1 - p).log()).mean()
    torch.testing.assert_close(mask_loss(logits, targets), expected)
    rates = {k: v.item() for k, v in mask_error_rates(logits, targets).items()}
    assert rates == pytest.approx(
        {"accuracy": 4 / 6, "false_positive": 1 / 3, "false_negative": 1 / 3}
    )
