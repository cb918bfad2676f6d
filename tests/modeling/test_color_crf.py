"""The random field that moves masks to the edges of colors."""

import math

import numpy as np
import pytest
import torch
from detectron2.layers import cat
from detectron2.structures import ImageList, Instances

from contrastmask.modeling.color_crf import refine_by_color, rgb_to_lab

SIDE, MARGIN = 6, 2
WHOLE = SIDE + 2 * MARGIN
OPTIONS = {"weight": 3.0, "distance": 0.4, "color_distance": 9.0}


def synthetic(num=3):
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(num, SIDE, SIDE, generator=generator) * 3
    colors = 60 * torch.rand(num, 3, WHOLE, WHOLE, generator=generator)
    in_image = torch.ones(num, WHOLE, WHOLE, dtype=torch.bool)
    in_image[-1, :3], in_image[-1, :, 9:] = False, False
    return logits, colors, in_image


def by_loops(
    logits, colors, in_image, *, weight, distance, color_distance, num_iterations=5, stride=2
):
    """One RoI, cell by cell, in double precision."""
    place = (np.arange(WHOLE) + 0.5) / SIDE
    corners = range(0, WHOLE, stride)
    blocks = [(slice(y, y + stride), slice(x, x + stride)) for y in corners for x in corners]

    def mean_field(start):
        padded = np.full((WHOLE, WHOLE), -100.0)
        padded[MARGIN:-MARGIN, MARGIN:-MARGIN] = start
        current = padded.copy()
        for _ in range(num_iterations):
            following = padded.copy()
            for y in range(MARGIN, WHOLE - MARGIN):
                for x in range(MARGIN, WHOLE - MARGIN):
                    votes, total = 0.0, 0.0
                    for rows, columns in blocks:
                        apart = (place[y] - place[rows].mean()) ** 2
                        apart += (place[x] - place[columns].mean()) ** 2
                        color = colors[:, rows, columns].mean(axis=(1, 2)) - colors[:, y, x]
                        w = math.exp(-apart / (2 * distance**2))
                        w *= math.exp(-(color**2).sum() / (2 * color_distance**2))
                        w *= in_image[rows, columns].mean()
                        votes += w * np.tanh(current[rows, columns] / 2).mean()
                        total += w
                    following[y, x] += weight * votes / max(total, 1e-3)
            current = following
        return current[MARGIN:-MARGIN, MARGIN:-MARGIN]

    start = logits.clip(-3, 3)
    foreground = mean_field(start) > 0
    raised = start.copy()
    for y in range(SIDE):
        for x in range(SIDE):
            for line, found in ((start[y], foreground[y]), (start[:, x], foreground[:, x])):
                if not found.any():
                    raised[y, x] = max(raised[y, x], start[y, x] + max(2.0 - line.max(), 0.0))
    return mean_field(raised), raised, mean_field(start)


@pytest.mark.parametrize("rois_at_once", [1, 32])
def test_against_loops(rois_at_once):
    logits, colors, in_image = synthetic()
    logits[1] -= 4.0  # no foreground in some rows and columns
    refined = refine_by_color(logits, colors, in_image, **OPTIONS, rois_at_once=rois_at_once)
    num_raised = []
    for roi in range(len(logits)):
        arrays = (x[roi].double().numpy() for x in (logits, colors, in_image))
        expected, raised, _ = by_loops(*arrays, **OPTIONS)
        assert np.allclose(refined[roi].numpy(), expected, atol=1e-3)
        num_raised.append((raised > logits[roi].clamp(-3, 3).numpy() + 1e-6).sum())
    assert num_raised[1] > num_raised[0]


def test_quick_form_against_loops():
    """Detected boxes are not tight: nothing is raised."""
    logits, colors, in_image = synthetic()
    logits[1] -= 4.0
    options = {**OPTIONS, "num_iterations": 2, "stride": 5}
    refined = refine_by_color(logits, colors, in_image, **options, is_tight=False)
    for roi in range(len(logits)):
        arrays = (x[roi].double().numpy() for x in (logits, colors, in_image))
        *_, expected = by_loops(*arrays, **options)
        assert np.allclose(refined[roi].numpy(), expected, atol=1e-3)


def test_mask_is_moved_to_the_edge_of_a_color():
    """A blurred, shifted mask of a disc becomes the disc; its box stays as it is."""
    side, margin = 28, 4
    places = torch.arange(side + 2 * margin) - margin + 0.5
    truth = (places[:, None] - 14).square() + (places - 14).square() < 13.9**2
    colors = torch.where(truth, 70.0, 40.0).expand(1, 3, -1, -1)
    shifted = (places[:, None] - 17).square() + (places - 17).square() < 10**2
    inner = slice(margin, -margin)
    logits = torch.where(shifted, 1.5, -1.5)[None, inner, inner]
    in_image = torch.ones(1, *truth.shape, dtype=torch.bool)
    refined = refine_by_color(
        logits, colors, in_image, weight=4.0, distance=0.3, color_distance=4.0
    )

    def iou(mask):
        expected = truth[inner, inner]
        return ((mask & expected).sum() / (mask | expected).sum()).item()

    assert iou(logits[0] > 0) < 0.55
    assert iou(refined[0] > 0) > 0.95


def test_tight_boxes_have_foreground_at_their_sides():
    logits = torch.full((1, SIDE, SIDE), -2.5)
    logits[0, :, 2] = torch.tensor([-2.0, -1.0, -0.5, 0.0, 1.0, -3.0])
    generator = torch.Generator().manual_seed(1)
    colors = 500 * torch.rand(1, 3, WHOLE, WHOLE, generator=generator)  # no two cells are alike
    in_image = torch.ones(1, WHOLE, WHOLE, dtype=torch.bool)
    foreground = refine_by_color(logits, colors, in_image, **OPTIONS)[0] > 0
    assert foreground.any(dim=0).all() and foreground.any(dim=1).all()


def test_no_boxes():
    logits, colors, in_image = (x[:0] for x in synthetic())
    assert refine_by_color(logits, colors, in_image, **OPTIONS).shape == (0, SIDE, SIDE)


def test_lab_of_known_colors():
    """Values of CIE 15 for the sRGB primaries, white and a gray."""
    colors = torch.tensor(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [119, 119, 119], [0, 0, 0]]
    )
    expected = torch.tensor(
        [
            [53.24, 80.09, 67.20],
            [87.73, -86.18, 83.18],
            [32.30, 79.19, -107.86],
            [100.0, 0.0, 0.0],
            [50.03, 0.0, 0.0],
            [0.0, 0.0, 0.0],
        ]
    )
    lab = rgb_to_lab(colors.float()[:, :, None, None])[:, :, 0, 0]
    assert torch.allclose(lab, expected, atol=0.05)


@pytest.fixture
def cfg(heads_cfg):
    heads_cfg.MODEL.ROI_MASK_HEAD.COLOR_CRF.AT_TEST = True
    heads_cfg.MODEL.PIXEL_MEAN, heads_cfg.MODEL.PIXEL_STD = [9.0, 8.0, 7.0], [80.0, 70.0, 60.0]
    return heads_cfg


@pytest.fixture
def setting(make_batch):
    """Features, normalized images, and boxes with classes, more of them in the second image."""
    features, proposals, _ = make_batch()
    generator = torch.Generator().manual_seed(2)
    sizes = [x.image_size for x in proposals]
    shape = [max(x) for x in zip(*sizes)]
    images = ImageList(torch.rand(2, 3, *shape, generator=generator), sizes)
    given = [Instances(x.image_size) for x in proposals]
    for x, proposal, num in zip(given, proposals, (2, 5)):
        x.pred_boxes = proposal.proposal_boxes[:num]
        x.pred_classes = torch.arange(num)
    return features, images, given


def _given(instances):
    return [Instances(x.image_size, **x.get_fields()) for x in instances]


@torch.no_grad()
def test_inference_moves_masks(cfg, build_heads, setting):
    """Those of the mask head, with the colors of their boxes, in any number of chunks."""
    features, images, given = setting
    heads = build_heads(cfg).eval()
    crf, heads.color_crf = heads.color_crf, None
    plain = cat([x.pred_masks for x in heads.forward_with_given_boxes(features, _given(given))])
    expected = crf(plain.logit()[:, 0], images, [x.pred_boxes for x in given], is_quick=True)
    heads.color_crf = crf
    for heads.test_rois_per_chunk in (3, 128):
        results = heads.forward_with_given_boxes(features, _given(given), images)
        found = cat([x.pred_masks for x in results])
        torch.testing.assert_close(found[:, 0], expected.sigmoid(), atol=1e-4, rtol=1e-4)
    assert (found - plain).abs().max() > 0.05
    with pytest.raises(ValueError, match="COLOR_CRF.AT_TEST needs the images"):
        heads.forward_with_given_boxes(features, _given(given))


@torch.no_grad()
def test_detections_get_the_masks_of_given_boxes(cfg, build_heads, make_batch, setting):
    features, images, _ = setting
    _, proposals, _ = make_batch()
    heads = build_heads(cfg).eval()
    found, _ = heads(images, features, proposals)
    given = [Instances(x.image_size) for x in found]
    for x, y in zip(given, found):
        x.pred_boxes, x.pred_classes, x.pred_cams = y.pred_boxes, y.pred_classes, y.pred_cams
    expected = heads.forward_with_given_boxes(features, given, images)
    assert sum(map(len, found)) > 2
    torch.testing.assert_close(
        cat([x.pred_masks for x in found]), cat([x.pred_masks for x in expected])
    )


def test_weight_of_each_form(cfg, build_heads, setting):
    """The first is that of self-training's labels, the second that of inference."""
    _, images, given = setting
    boxes = [x.pred_boxes for x in given]
    logits = torch.randn(sum(map(len, boxes)), 14, 14)
    moved = {}
    for weights in ((0.0, 2.0), (2.0, 0.0), (1.0, 2.0)):
        keys = cfg.MODEL.ROI_MASK_HEAD.COLOR_CRF
        keys.WEIGHT, keys.TEST_WEIGHT = weights
        keys.TEST_BIAS = 0.0
        crf = build_heads(cfg).color_crf
        results = [crf(logits, images, boxes, is_quick=x) for x in (False, True)]
        moved[weights] = [float((x - logits.clamp(-3, 3)).abs().mean()) for x in results]
        for weight, result in zip(weights, results):
            assert torch.equal(result, logits) == (weight == 0)
    assert moved[1.0, 2.0][1] == moved[0.0, 2.0][1] > 0.1
    assert 0.1 < moved[1.0, 2.0][0] < moved[2.0, 0.0][0]


def test_bias_at_test_time(cfg, build_heads, setting):
    """It is added to the logits, and self-training's labels are made without it."""
    _, images, given = setting
    boxes = [x.pred_boxes for x in given]
    logits = torch.randn(sum(map(len, boxes)), 14, 14)
    keys = cfg.MODEL.ROI_MASK_HEAD.COLOR_CRF
    assert keys.TEST_BIAS > 0
    results = []
    for bias in (0.0, 0.5):
        keys.TEST_BIAS = bias
        crf = build_heads(cfg).color_crf
        results.append([crf(logits, images, boxes, is_quick=x) for x in (False, True)])
    without = build_heads(cfg).color_crf
    without.test_bias = 0.0
    (labels, plain), (same_labels, biased) = results
    assert torch.equal(labels, same_labels)
    assert torch.equal(biased, without(logits + 0.5, images, boxes, is_quick=True))
    assert (biased > 0).sum() > (plain > 0).sum()


def test_settings(cfg, build_heads):
    cfg.MODEL.ROI_MASK_HEAD.COLOR_CRF.TEST_WEIGHT = 0.0
    heads = build_heads(cfg)
    logits = torch.randn(3, 4, 4)
    assert torch.equal(heads.color_crf(logits, None, None, is_quick=True), logits)
    assert not [name for name in heads.state_dict() if "crf" in name]  # nothing to carry
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ValueError, match="COLOR_CRF.*INPUT.FORMAT.*L"):
        build_heads(cfg)
    cfg.MODEL.ROI_MASK_HEAD.COLOR_CRF.AT_TEST = False
    assert build_heads(cfg).color_crf is None
