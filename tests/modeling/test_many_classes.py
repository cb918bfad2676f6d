"""Thousands of classes, as in LVIS."""

import pytest
import torch

from contrastmask.modeling.roi_heads import ContrastMaskROIHeads


@pytest.mark.parametrize("num_classes", [1200, 3000])
def test_trains_a_step(heads_cfg, build_heads, run_heads, make_batch, num_classes):
    few = build_heads(heads_cfg)
    heads_cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    heads = build_heads(heads_cfg)
    assert isinstance(heads, ContrastMaskROIHeads)

    shapes = {name: p.shape for name, p in heads.named_parameters()}
    grown = {name for name, p in few.named_parameters() if shapes[name] != p.shape}
    assert grown == {
        f"box_predictor.{layer}.{kind}"
        for layer in ("cls_score", "bbox_pred")
        for kind in ("weight", "bias")
    }
    assert heads.box_predictor.cls_score.weight.shape[0] == num_classes + 1

    features, proposals, targets = make_batch()
    for target in targets:  # classes from all over the range
        target.gt_classes = target.gt_classes * (num_classes // 5) + 7
    losses, _ = run_heads(heads, (features, proposals, targets))
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_contrastive"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(loss > 0 for loss in losses.values())
    optimizer = torch.optim.SGD(heads.parameters(), lr=0.01)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in heads.parameters())
    optimizer.step()
    after, _ = run_heads(heads, make_batch())
    assert all(torch.isfinite(loss) for loss in after.values())

    heads.eval()
    with torch.no_grad():
        instances, _ = heads(None, features, proposals)
    assert all(len(x) == len(x.pred_masks) == len(x.pred_cams) for x in instances)
