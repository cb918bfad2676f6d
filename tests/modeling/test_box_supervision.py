"""The mask loss of boxes without a mask."""

import math

import pytest
import torch
from detectron2.structures import Boxes, ImageList

from contrastmask.modeling.box_supervision import (
    BoxSupervision,
    color_affinity_loss,
    crop_colors,
    projection_loss,
)

SIDE, MARGIN = 6, 2


def synthetic(num=3):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(num, SIDE, SIDE, generator=generator, dtype=torch.float64) * 3
    side = SIDE + 2 * MARGIN
    return logits, torch.rand(num, 3, side, side, generator=generator, dtype=torch.float64)


def batch(*images):
    """ImageList of (3, h, w) tensors, padded with 0 to the largest."""
    return ImageList.from_tensors(list(images))


def test_projection_against_loops():
    logits, _ = synthetic()
    terms = []
    for roi in logits.sigmoid().tolist():
        terms += [-math.log(max(row)) for row in roi]
        terms += [-math.log(max(column)) for column in zip(*roi)]
    assert projection_loss(logits).item() == pytest.approx(sum(terms) / len(terms), rel=1e-9)


@pytest.mark.parametrize("num_outside", [0, 1, 4])
def test_affinity_against_loops(num_outside):
    """Of the second RoI, columns at the left, or rows and columns, are outside the image."""
    logits, colors = synthetic(2)
    in_image = torch.ones(2, SIDE + 4, SIDE + 4, dtype=torch.bool)
    in_image[1, :, :num_outside] = False
    in_image[1, : num_outside // 2] = False
    probability = torch.zeros(2, SIDE + 4, SIDE + 4, dtype=torch.float64)
    probability[:, 2:-2, 2:-2] = logits.sigmoid()
    probability[probability == 0] = torch.sigmoid(torch.tensor(-20.0, dtype=torch.float64))
    is_inside = torch.zeros(SIDE + 4, SIDE + 4, dtype=torch.bool)
    is_inside[2:-2, 2:-2] = True
    terms = []
    pixels = [(y, x) for y in range(SIDE + 4) for x in range(SIDE + 4)]
    for roi in range(2):
        for i, (y, x) in enumerate(pixels):
            for v, u in pixels[i + 1 :]:
                dy, dx = abs(v - y), abs(u - x)
                is_neighbor = max(dy, dx) in (1, 2) and min(dy, dx) in (0, max(dy, dx))
                if not is_neighbor or not (is_inside[y, x] or is_inside[v, u]):
                    continue
                if not (in_image[roi, y, x] and in_image[roi, v, u]):
                    continue
                if (colors[roi, :, y, x] - colors[roi, :, v, u]).norm() >= 0.4:
                    continue
                p, q = probability[roi, y, x], probability[roi, v, u]
                terms.append(-math.log(p * q + (1 - p) * (1 - q)))
    assert len(terms) > 50
    loss = color_affinity_loss(logits, colors, in_image, 0.4)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-6)


def test_no_similar_colors():
    logits, colors = synthetic()
    logits.requires_grad_()
    in_image = torch.ones_like(colors[:, 0], dtype=torch.bool)
    loss = color_affinity_loss(logits, colors, in_image, 0.0)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("nearest", [False, True])
def test_colors_of_cells(nearest):
    # Cells of 4 pixels; a cell's color is its place, and the box starts at the third.
    side = 40
    places = torch.arange(side).float() // 4
    images = torch.zeros(2, 3, side, side)
    images[1, 0], images[1, 1], images[1, 2] = places, places[:, None], 7.0
    boxes = [Boxes(torch.zeros(0, 4)), Boxes(torch.tensor([[12.0, 8.0, 28.0, 24.0]]))]
    images = batch(images[0], images[1, :, :, :32])
    colors, in_image = crop_colors(images, boxes, 4, nearest=nearest)
    assert colors.shape == (1, 3, 8, 8)
    assert in_image.shape == (1, 8, 8)
    # The last cells of the eight would begin at x = 32, behind the image.
    assert in_image[0, :, :-1].all() and not in_image[0, :, -1].any()
    colors = colors[..., :-1]
    assert torch.allclose(colors[0, 0], (torch.arange(7.0) + 1).expand(8, 7), atol=1e-5)
    assert torch.allclose(colors[0, 1], torch.arange(8.0)[:, None].expand(8, 7), atol=1e-5)
    assert (colors[0, 2] == 7).all()


def test_nearest_pixels():
    """Those at the centers of the cells; beyond the image, those at its border."""
    images = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(1))
    boxes = [Boxes(torch.zeros(0, 4)), Boxes(torch.tensor([[11.0, 2.5, 31.0, 14.5]]))]
    colors, _ = crop_colors(batch(*images), boxes, 4, margin=1, nearest=True)
    x, y = [8, 13, 18, 23, 28, 29], [1, 4, 7, 10, 13, 16]  # cells of 5 x 3 pixels
    assert torch.equal(colors[0], images[1][:, y][:, :, x])


@pytest.mark.parametrize("padding", [0, 8])
def test_object_that_the_image_cuts_off(padding):
    """No pair with what is outside the image, be it the last pixels repeated, or padding."""
    images = batch(torch.zeros(3, 24, 24), torch.zeros(3, 24 + padding, 24 + padding))
    logits = torch.full((1, SIDE, SIDE), 9.0, requires_grad=True)
    inner, whole = torch.tensor([[6.0, 6.0, 18.0, 18.0]]), torch.tensor([[0.0, 0.0, 24.0, 24.0]])
    losses = []
    for box in (inner, whole):
        colors, in_image = crop_colors(images, [Boxes(box), Boxes(torch.zeros(0, 4))], SIDE)
        losses.append(color_affinity_loss(logits, colors, in_image, 5.0).item())
    # One color: the inner box's neighbors are background, the image has no neighbors.
    assert losses[0] > 1 and losses[1] < 1e-3


def test_a_disc_is_found_from_its_box():
    """Gradient descent on the loss alone, from a wrong mask, ends with the object."""
    side = 56
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    inside = (x - 28).square() + (y - 28).square() < 14**2
    image = batch(torch.where(inside, 200.0, 50.0).expand(3, side, side))
    boxes = [Boxes(torch.tensor([[14.0, 14.0, 42.0, 42.0]]))]
    supervision = BoxSupervision(
        weight=1.0, max_color_distance=30.0, warmup_iters=0, pixel_std=[1.0, 1.0, 1.0]
    )
    logits = torch.zeros(1, 1, 28, 28)
    logits[0, 0, 8:20, 8:20] = 1.0
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.3)
    for iteration in range(150):
        optimizer.zero_grad()
        supervision(logits, image, boxes, iteration).backward()
        optimizer.step()
    found, truth = logits[0, 0] > 0, inside[14:42, 14:42]
    iou = (found & truth).sum() / (found | truth).sum()
    filled = truth.float().mean()
    assert filled < 0.8 < 0.93 < iou


def test_weight_and_units():
    logits, _ = synthetic(1)
    images = torch.rand(1, 3, 20, 20)
    boxes = [Boxes(torch.tensor([[4.0, 4.0, 16.0, 16.0]]))]

    def loss(weight, warmup_iters, iteration, *scales):
        scales = torch.tensor(scales)
        supervision = BoxSupervision(
            weight=weight,
            max_color_distance=80.0,
            warmup_iters=warmup_iters,
            pixel_std=(255 * scales).tolist(),
        )
        batch_of_one = batch(images[0] / scales[:, None, None])
        return supervision(logits[:, None].float(), batch_of_one, boxes, iteration)

    full = loss(1.0, 10, 9, 1.0, 1.0, 1.0)
    assert full > 0
    assert torch.allclose(loss(1.0, 10, 4, 1.0, 1.0, 1.0), full / 2)
    assert torch.allclose(loss(0.5, 10, 99, 1.0, 1.0, 1.0), full / 2)
    # The model's normalization plays no part.
    assert torch.allclose(loss(1.0, 10, 9, 0.5, 0.8, 1.6), full)


def test_every_key_reaches_the_loss(heads_cfg):
    assert BoxSupervision.from_config(heads_cfg) is None  # off by default
    keys = heads_cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION
    keys.LOSS_WEIGHT, keys.MAX_COLOR_DISTANCE, keys.WARMUP = 0.7, 33.0, 0.3
    heads_cfg.SOLVER.MAX_ITER = 77
    heads_cfg.MODEL.PIXEL_MEAN, heads_cfg.MODEL.PIXEL_STD = [9.0, 8.0, 7.0], [1.0, 2.0, 3.0]
    supervision = BoxSupervision.from_config(heads_cfg)
    assert (supervision.weight, supervision.max_color_distance) == (0.7, 33.0)
    assert supervision.warmup_iters == 23  # of 23.1
    assert supervision.pixel_std.tolist() == [1, 2, 3]
    assert not supervision.state_dict()
    keys.WARMUP = 1.0
    assert BoxSupervision.from_config(heads_cfg).warmup_iters == 77


def test_colors_at_the_limit_are_not_similar():
    logits, colors = synthetic(1)
    colors = torch.zeros_like(colors)
    colors[:, 1, ::2] = 5.0  # rows alternate between two colors
    in_image = torch.ones_like(colors[:, 0], dtype=torch.bool)
    losses = [color_affinity_loss(logits, colors, in_image, limit) for limit in (4.9, 5.0, 5.1)]
    assert losses[0] == losses[1] != losses[2]
