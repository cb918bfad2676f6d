import pytest
import torch

from contrastmask.modeling.pixel_sets import (
    KeySets,
    PixelSets,
    boundary_ring,
    build_pixel_sets,
    mask_edges,
    sample_keys,
)

PARAMS = dict(delta=0.1, fallback_delta=0.05, min_query_size=2, ring_width=1, min_set_size=5)


def one_set(pixels, kept=None):
    """PixelSets with `pixels` (R, H, W) for the positive sets and the rest for the negative."""
    kept = torch.ones(len(pixels), dtype=torch.bool) if kept is None else kept
    return PixelSets(pixels, ~pixels, KeySets(pixels, ~pixels, pixels, ~pixels), kept)


def test_no_edge_where_a_mask_runs_into_the_border():
    masks = torch.zeros(1, 9, 9, dtype=torch.bool)
    masks[:, :, :4] = True  # touches three borders, one vertical boundary
    edges = mask_edges(masks)
    expected = torch.zeros_like(masks)
    expected[:, :, 3:5] = True
    assert torch.equal(edges, expected)


def test_wider_ring():
    edges = torch.zeros(1, 9, 9, dtype=torch.bool)
    edges[:, 4, 4] = True
    assert boundary_ring(edges, 1).sum() == 8
    assert boundary_ring(edges, 2).sum() == 24


@pytest.mark.parametrize("fraction", [0.3, 0.5, 1.0])
def test_sample_sizes_and_membership(fraction):
    pixels = torch.rand(6, 11, 11) < torch.tensor([0.0, 0.01, 0.1, 0.5, 0.9, 1.0])[:, None, None]
    kept = torch.tensor([True, True, True, True, True, False])
    sets = one_set(pixels, kept)
    for chosen, available in zip(sample_keys(sets, fraction), sets.keys):
        assert not (chosen & ~available).any()
        expected = (available.flatten(1).sum(1).float() * fraction).ceil() * kept
        assert torch.equal(chosen.flatten(1).sum(1).float(), expected)


def test_sample_sizes_of_maps_with_more_pixels_than_int16_counts():
    pixels = torch.zeros(1, 190, 190, dtype=torch.bool)
    pixels[:, :186] = True
    sampled = sample_keys(one_set(pixels), 1.0)
    assert torch.equal(sampled.easy_positive, pixels)
    assert torch.equal(sampled.easy_negative, ~pixels)


def test_sampling_is_uniform_without_replacement():
    num_pixels, num_draws = 20, 4000
    pixels = torch.zeros(num_draws, 5, 8, dtype=torch.bool)
    pixels.view(num_draws, -1)[:, :num_pixels] = True
    sampled = sample_keys(one_set(pixels), 0.3)
    draws = sampled.easy_positive.flatten(1)[:, :num_pixels].float()
    assert torch.equal(draws.sum(1), torch.full((num_draws,), 6.0))  # no pixel twice
    # Inclusion of one pixel and of pairs of pixels, against the exact probabilities. The bounds
    # are 5 standard deviations of a binomial count.
    p = 6 / 20
    assert (draws.mean(0) - p).abs().max() < 5 * (p * (1 - p) / num_draws) ** 0.5
    pairs = draws.T @ draws / num_draws
    pairs = pairs[~torch.eye(num_pixels, dtype=torch.bool)]
    p = 6 / 20 * 5 / 19
    assert (pairs - p).abs().max() < 5 * (p * (1 - p) / num_draws) ** 0.5


def test_easy_and_hard_keys_of_novel_rois_are_independent_samples():
    cam = torch.zeros(2000, 4, 5)
    cam[:, :2] = 1.0
    masks = torch.zeros_like(cam, dtype=torch.bool)
    sets = build_pixel_sets(masks, torch.zeros(2000, dtype=torch.bool), cam, **PARAMS)
    sampled = sample_keys(sets, 0.3)
    both = (sampled.easy_positive & sampled.hard_positive)[:, :2].float().mean()
    assert (both - 0.3 * 0.3).abs() < 0.01


def test_masks_of_novel_rois_are_not_looked_at():
    cam = torch.rand(4, 14, 14)
    novel = torch.tensor([True, False, True, False])
    masks = torch.rand(4, 14, 14) > 0.5
    changed = torch.where(novel[:, None, None], ~masks, masks)
    first = build_pixel_sets(masks, ~novel, cam, **PARAMS)
    second = build_pixel_sets(changed, ~novel, cam, **PARAMS)
    assert all(torch.equal(a, b) for a, b in zip(first.keys, second.keys))
    assert torch.equal(first.query_foreground, second.query_foreground)
    assert torch.equal(first.query_background, second.query_background)


@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_masks_are_dropped_and_fall_back_to_the_cam(value):
    cam = torch.rand(3, 14, 14)
    masks = torch.full((3, 14, 14), value)
    sets = build_pixel_sets(masks, torch.ones(3, dtype=torch.bool), cam, **PARAMS)
    assert not sets.kept.any()
    assert torch.equal(
        sets.query_background if value else sets.query_foreground,
        cam < 0.05 if value else cam > 0.95,
    )


def test_no_rois():
    masks = torch.zeros(0, 14, 14, dtype=torch.bool)
    sets = build_pixel_sets(masks, masks[:, 0, 0], torch.zeros(0, 14, 14), **PARAMS)
    sampled = sample_keys(sets, 0.3)
    assert all(x.shape == (0, 14, 14) for x in sampled)


def test_values_at_the_thresholds_are_not_sure():
    cam = torch.tensor([0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1.0]).expand(1, 3, 7)
    masks = torch.zeros(1, 3, 7, dtype=torch.bool)
    params = dict(PARAMS, delta=0.25, fallback_delta=0.125, min_set_size=6)
    novel = build_pixel_sets(masks, torch.tensor([False]), cam, **params)
    assert novel.query_foreground[0, 0].tolist() == [False] * 5 + [True] * 2
    assert novel.query_background[0, 0].tolist() == [True] * 2 + [False] * 5
    assert novel.kept.tolist() == [True]  # 6 pixels in each set: just enough
    assert not build_pixel_sets(
        masks, torch.tensor([False]), cam, **dict(params, min_set_size=7)
    ).kept.any()
    # An empty mask falls back to the CAM, by the other threshold.
    base = build_pixel_sets(masks, torch.tensor([True]), cam, **params)
    assert base.query_foreground[0, 0].tolist() == [False] * 6 + [True]
    # Two pixels are enough for a query where two are asked for.
    masks[0, 1, 3:5] = True
    base = build_pixel_sets(masks, torch.tensor([True]), cam, **params)
    assert torch.equal(base.query_foreground, masks)
    base = build_pixel_sets(masks, torch.tensor([True]), cam, **dict(params, min_query_size=3))
    assert base.query_foreground[0, 0].tolist() == [False] * 6 + [True]
