"""The random field that moves masks to the edges of colors."""

import math

import numpy as np
import pytest
import torch

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


def by_loops(logits, colors, in_image, *, weight, distance, color_distance):
    """One RoI, cell by cell, in double precision."""
    place = (np.arange(WHOLE) + 0.5) / SIDE
    half = range(0, WHOLE, 2)
    blocks = [(slice(y, y + 2), slice(x, x + 2)) for y in half for x in half]

    def mean_field(start):
        padded = np.full((WHOLE, WHOLE), -10.0)
        padded[MARGIN:-MARGIN, MARGIN:-MARGIN] = start
        current = padded.copy()
        for _ in range(5):
            following = padded.copy()
            for y in range(WHOLE):
                for x in range(WHOLE):
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
    return mean_field(raised), raised


@pytest.mark.parametrize("rois_at_once", [1, 32])
def test_against_loops(rois_at_once):
    logits, colors, in_image = synthetic()
    logits[1] -= 4.0  # no foreground in some rows and columns
    refined = refine_by_color(logits, colors, in_image, **OPTIONS, rois_at_once=rois_at_once)
    num_raised = []
    for roi in range(len(logits)):
        arrays = (x[roi].double().numpy() for x in (logits, colors, in_image))
        expected, raised = by_loops(*arrays, **OPTIONS)
        assert np.allclose(refined[roi].numpy(), expected, atol=1e-3)
        num_raised.append((raised > logits[roi].clamp(-3, 3).numpy() + 1e-6).sum())
    assert num_raised[1] > num_raised[0]


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
