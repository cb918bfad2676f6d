"""
Operations that make the host wait for the device: not more than in Detectron2's own heads, although
the contrastive head has a RoIAlign of its own, which waits three times.
"""

import warnings

import pytest
import torch
from detectron2.structures import ImageList
from torch.utils._python_dispatch import TorchDispatchMode

from contrastmask.modeling import roi_heads, sampling

# Operators whose result, or its shape, the host has to know.
_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")
# Methods that copy to the host without an operator of their own on the CPU.
_COPYING = ("cpu", "tolist", "numpy")


class CountWaits(TorchDispatchMode):
    """Counts what would wait if all tensors were on a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = (
            args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        )
        is_mask = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)
        repeats = name == "repeat_interleave" and func._overloadname != "self_int"
        self.count += name.startswith(_WAITING) or is_mask or repeats
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch):
    """CountWaits that is also told about copies to the host."""
    counter = CountWaits()

    def counting(method):
        def call(*args, **kwargs):
            counter.count += 1
            return method(*args, **kwargs)

        return call

    def choose_rois(*args, **kwargs):
        before = counter.count
        rois = sampling.choose_rois(*args, **kwargs)
        counter.count = before + 1  # one copy to the host; the rest is work on the copy
        return rois

    monkeypatch.setattr(roi_heads, "choose_rois", choose_rois)
    for name in _COPYING:
        monkeypatch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name)))
    return counter


@pytest.fixture
def detectron2_cfg(heads_cfg):
    """`heads_cfg` with Detectron2's own heads."""
    cfg = heads_cfg.clone()
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    return cfg


def test_the_counter_counts(waits):
    x = torch.arange(4.0)
    with waits:
        _ = x[x > 1], x.sum().item(), (x > 1).nonzero(), x.tolist(), x.cpu(), x * 2, x[1:]
    assert waits.count == 5


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("MODEL.ROI_HEADS.LOW_QUALITY_MIN_IOU", 0.5),
        ("MODEL.ROI_HEADS.INCLUDE_GT_BOXES", True),
        ("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT", 1.0),
        ("MODEL.ROI_MASK_HEAD.SELF_TRAINING.LOSS_WEIGHT", 1.0),
    ],
    ids=lambda x: "".join(map(str, x)) or "default",
)
def test_not_more_waits_than_detectron2(
    heads_cfg, detectron2_cfg, build_heads, make_batch, run_heads, waits, options
):
    heads_cfg.merge_from_list(list(options))
    counts = []
    for cfg in (detectron2_cfg, heads_cfg):
        heads, batch = build_heads(cfg), make_batch(has_mask=True)
        waits.count = 0
        with waits:
            losses, _ = run_heads(heads, batch)
            sum(losses.values()).backward()
        assert torch.isfinite(losses["loss_mask"])
        counts.append(waits.count)
    assert 0 < counts[1] <= counts[0], counts


def test_self_training_does_not_wait(heads_cfg, build_heads, make_batch, waits):
    heads_cfg.MODEL.ROI_MASK_HEAD.SELF_TRAINING.LOSS_WEIGHT = 1.0
    heads = build_heads(heads_cfg).train()
    _, _, targets = make_batch(has_mask=False)
    boxes = [x.gt_boxes for x in targets]
    classes = torch.cat([x.gt_classes for x in targets])
    num = sum(map(len, boxes))
    images = ImageList(torch.rand(2, 3, 120, 128), [x.image_size for x in targets])
    inputs = torch.rand(num, 16, 14, 14), None, torch.rand(num, 10, 14, 14)
    logits = heads.mask_head(*inputs)
    waits.count = 0
    with waits:
        heads.self_training.update_teacher(heads.mask_head, 0)
        loss, _ = heads.self_training(logits, inputs, images, boxes, classes, iteration=119)
        loss.backward()
    assert loss > 0 and waits.count == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_not_more_waits_than_detectron2_on_cuda(
    heads_cfg, detectron2_cfg, build_heads, make_batch, run_heads
):
    counts = []
    for cfg in (detectron2_cfg, heads_cfg):
        cfg.MODEL.DEVICE = "cuda"
        heads, batch = build_heads(cfg).cuda(), make_batch(has_mask=True, device="cuda")
        run_heads(heads, batch)  # the first call loads kernels
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                losses, _ = run_heads(heads, batch)
                sum(losses.values()).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(x.message) for x in caught))
    assert 0 < counts[1] <= counts[0], counts
