import math

import torch
from detectron2.config import get_cfg
from detectron2.modeling.box_regression import Box2BoxTransform

from contrastmask import add_contrastmask_config
from contrastmask.modeling.box_regression import build_box2box_transform

WEIGHTS = (10.0, 10.0, 5.0, 4.0)


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
