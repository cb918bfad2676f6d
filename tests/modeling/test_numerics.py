"""
Properties of the numerical parts over random and degenerate inputs: constant, zero, tiny and huge
values up to the range of float16, RoIs without width, turned around or outside the image. Results
are finite, and gradients in float32 (float16 gradients may overflow; a gradient scaler then skips
the step). What is a share, a subset or a count stays one.
"""

import functools

import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contrastmask.modeling.cam import class_activation_map, min_max_normalize, resize_map
from contrastmask.modeling.contrastive_loss import LOSS_FORMS, query_sharing_loss
from contrastmask.modeling.mask_head import crop_mask_targets, mask_error_rates, mask_loss
from contrastmask.modeling.pixel_sets import build_pixel_sets, sample_keys
from contrastmask.modeling.self_similarity import enhance_by_self_similarity

LARGEST = torch.finfo(torch.float16).max
SMALLEST = 2.0**-24  # above 0 in float16

properties = functools.partial(settings, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.0, SMALLEST, 1e-3, 1.0, 30.0, 1e3, LARGEST])
dtypes = st.sampled_from([torch.float32, torch.float16])
PATTERNS = ["normal", "constant", "constant rows", "one spike", "mixed scales", "half zero"]
patterns = st.sampled_from(PATTERNS)


def make(shape, pattern, scale, seed, dtype=torch.float32):
    """Values (N, ...) of about `scale`, at most LARGEST, all of them representable in `dtype`."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=rng)
    if pattern == "constant":
        x = torch.ones(shape) * float(torch.randn((), generator=rng))
    elif pattern == "constant rows":
        x = x.flatten(1)[:, :1].expand(shape[0], max(x[0].numel(), 1) if len(x) else 1)
        x = x.reshape(shape) if len(x) else torch.zeros(shape)
    elif pattern == "one spike":
        x = torch.where(x == x.max(), 1.0, 0.0) if x.numel() else x
    elif pattern == "mixed scales":
        x = x * 10.0 ** torch.randint(-7, 5, shape, generator=rng)
    elif pattern == "half zero":
        x = x.relu()
    return (x * scale).clamp(-LARGEST, LARGEST).to(dtype).float().requires_grad_()


def is_finite(*tensors):
    return all(torch.isfinite(x).all() for x in tensors)


def gradient_of(output, inputs, seed):
    """Gradients of a random projection of `output`."""
    rng = torch.Generator().manual_seed(seed)
    direction = torch.randn(output.shape, generator=rng)
    return torch.autograd.grad((output * direction).sum(), inputs)


@properties(max_examples=80)
@given(st.integers(0, 3), patterns, scales, scales, dtypes, seeds)
def test_class_activation_maps(num_rois, pattern, scale, weight_scale, dtype, seed):
    features = make((num_rois, 8, 7, 7), pattern, scale, seed, dtype)
    weights = make((num_rois, 8), "normal", weight_scale, seed + 1)
    cam = class_activation_map(features.to(dtype), weights)
    assert cam.dtype == torch.float32
    normalized = min_max_normalize(resize_map(cam, 14))
    assert normalized.shape == (num_rois, 1, 14, 14)
    assert is_finite(cam, normalized)
    assert ((normalized >= 0) & (normalized <= 1)).all()
    if dtype == torch.float32:
        assert is_finite(*gradient_of(normalized, [features], seed))


@properties(max_examples=80)
@given(st.sampled_from([4, 64, 256]), scales, seeds)
@example(256, 30.0, 0)
def test_constant_features_have_no_cam(channels, scale, seed):
    """Rounding errors of the dot products, and of the resizing, are not stretched to 0..1."""
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(3, channels, 1, 1, generator=rng) * scale
    weights = torch.randn(3, channels, generator=rng)
    # Where large terms cancel, rounding errors are large beside the result.
    weights = torch.where((features[:, :, 0, 0] * weights) > 0, weights, -weights)
    cam = class_activation_map(features.expand(3, channels, 7, 7).contiguous(), weights)
    assert not min_max_normalize(resize_map(resize_map(cam, 14), 28)).any()


@properties(max_examples=60)
@given(
    st.floats(-LARGEST, LARGEST, width=16),
    st.floats(SMALLEST, LARGEST, width=16),
    st.integers(1, 9),
)
def test_normalized_range(low, size, side):
    maps = torch.linspace(low, low + size, side * side).view(1, 1, side, side).requires_grad_()
    normalized = min_max_normalize(maps)
    assert is_finite(normalized, *gradient_of(normalized, [maps], 0))
    assert normalized.amin() == 0 and normalized.amax() <= 1
    if size > 0.01 * max(abs(low), 1) and side > 1:
        assert normalized.amax() == 1


def random_masks(num_rois, side, rng):
    """Empty and full masks, boxes, half planes and noise."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    masks = []
    for _ in range(num_rois):
        kind = int(torch.randint(5, (), generator=rng))
        a, b = torch.randint(side + 1, (2,), generator=rng).tolist()
        masks.append(
            [
                torch.zeros(side, side, dtype=torch.bool),
                torch.ones(side, side, dtype=torch.bool),
                (x >= a) & (y >= b),
                x + y >= a + b,
                torch.rand(side, side, generator=rng) < 0.5,
            ][kind]
        )
    return torch.stack(masks) if masks else torch.zeros(0, side, side, dtype=torch.bool)


@properties(max_examples=150)
@given(
    num_rois=st.integers(0, 5),
    side=st.integers(1, 28),
    pattern=patterns,
    fraction=st.floats(1e-3, 1.0),
    delta=st.sampled_from([0.0, 0.05, 0.1, 0.5]),
    min_query_size=st.integers(0, 3),
    ring_width=st.integers(0, 3),
    min_set_size=st.integers(0, 10),
    seed=seeds,
)
def test_pixel_sets_and_samples(
    num_rois, side, pattern, fraction, delta, min_query_size, ring_width, min_set_size, seed
):
    rng = torch.Generator().manual_seed(seed)
    masks = random_masks(num_rois, side, rng)
    has_mask = torch.rand(num_rois, generator=rng) < 0.5
    cam = min_max_normalize(make((num_rois, 1, side, side), pattern, 1.0, seed)).detach()[:, 0]
    sets = build_pixel_sets(
        masks,
        has_mask,
        cam,
        delta=delta,
        fallback_delta=delta / 2,
        min_query_size=min_query_size,
        ring_width=ring_width,
        min_set_size=min_set_size,
    )
    keys = sets.keys
    assert not (keys.easy_positive & keys.easy_negative).any()
    assert not (keys.hard_positive & keys.hard_negative).any()
    base = has_mask[:, None, None]
    for positive in (keys.easy_positive, keys.hard_positive):
        assert not (positive & base & ~masks).any()
    for negative in (keys.easy_negative, keys.hard_negative):
        assert not (negative & base & masks).any()
    assert not (keys.easy_positive & keys.hard_positive & base).any()
    sizes = torch.stack([k.flatten(1).sum(1) for k in keys])
    assert torch.equal(sets.kept, (sizes >= min_set_size).all(0))

    torch.manual_seed(seed)
    sampled = sample_keys(sets, fraction)
    for chosen, available, size in zip(sampled, keys, sizes):
        assert chosen.dtype == torch.bool and not (chosen & ~available).any()
        expected = (size.float() * fraction).ceil().long() * sets.kept
        assert torch.equal(chosen.flatten(1).sum(1), expected)


@properties(max_examples=150)
@given(
    form=st.sampled_from(LOSS_FORMS),
    num_keys=st.integers(0, 40),
    key_pattern=patterns,
    key_scale=scales,
    query_pattern=patterns,
    query_scale=scales,
    temperature=st.sampled_from([0.01, 0.3, 0.7, 10.0]),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=seeds,
)
def test_contrastive_loss(
    form, num_keys, key_pattern, key_scale, query_pattern, query_scale, temperature, share, seed
):
    keys = make((num_keys, 6), key_pattern, key_scale, seed)
    queries = make((2, 6), query_pattern, query_scale, seed + 1)
    if seed % 3 == 0:  # keys equal to a query
        keys = (keys.detach() * 0 + queries.detach()[0]).requires_grad_()
    key_sets = torch.rand(num_keys, 4, generator=torch.Generator().manual_seed(seed)) < share
    terms = query_sharing_loss(
        queries,
        keys,
        key_sets,
        temperature_easy=temperature,
        temperature_hard=2 * temperature,
        form=form,
    )
    gradients = torch.autograd.grad(sum(terms), [queries, keys])
    assert is_finite(*terms, *gradients)
    if form == "paper":
        assert all(t > -1e-5 for t in terms)
    positive_sets = (0, 2, 1, 3)  # of the four terms
    assert all(t == 0 for t, k in zip(terms, positive_sets) if not key_sets[:, k].any())


@pytest.mark.parametrize("form", LOSS_FORMS)
def test_gradient_of_equal_keys_and_queries(form):
    """Features without differences, as of a dead encoder: nothing to learn, so no large step."""
    key = torch.rand(256, generator=torch.Generator().manual_seed(0)).requires_grad_()
    terms = query_sharing_loss(
        key.expand(2, 256),
        key.expand(1000, 256),
        torch.rand(1000, 4) < 0.5,
        temperature_easy=0.3,
        temperature_hard=0.7,
        form=form,
    )
    (gradient,) = torch.autograd.grad(sum(terms), key)
    assert gradient.norm() < 1


@properties(max_examples=80)
@given(
    st.integers(0, 3),
    st.integers(1, 8),
    patterns,
    scales,
    dtypes,
    st.sampled_from([None, 1, 4, 11]),
    seeds,
)
def test_self_similarity(num_rois, side, pattern, scale, dtype, size, seed):
    features = make((num_rois, 5, side, side), pattern, scale, seed, dtype)
    enhanced = enhance_by_self_similarity(features.to(dtype), size)
    assert enhanced.shape == (num_rois, 5, *(size or side,) * 2)
    assert enhanced.dtype == torch.float32
    assert is_finite(enhanced)
    if dtype == torch.float32:
        assert is_finite(*gradient_of(enhanced, [features], seed))
    if num_rois:  # averages
        low, high = features.amin((2, 3), keepdim=True), features.amax((2, 3), keepdim=True)
        slack = 1e-5 * features.abs().amax() + 1e-30
        assert ((enhanced >= low - slack) & (enhanced <= high + slack)).all()


@properties(max_examples=60)
@given(st.integers(1, 4), patterns, scales, dtypes, seeds)
def test_mask_loss(num_rois, pattern, scale, dtype, seed):
    logits = make((num_rois, 1, 9, 9), pattern, scale, seed, dtype)
    rng = torch.Generator().manual_seed(seed)
    targets = random_masks(num_rois, 9, rng)
    loss = mask_loss(logits.to(dtype), targets)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.dtype == torch.float32 and is_finite(loss, gradient) and loss >= 0
    # float16 rounds the gradient.
    assert gradient.abs().max() <= 1.01 / logits.numel()
    for rate in mask_error_rates(logits, targets).values():
        assert 0 <= rate <= 1


SIDE = 20


@properties(max_examples=120)
@given(
    st.lists(
        st.tuples(*[st.floats(-2 * SIDE, 3 * SIDE, width=32)] * 4)
        | st.sampled_from([(3, 3, 3, 9), (9, 9, 3, 3), (5, 5, 5, 5), (-9, -9, -1, -1)])
        | st.sampled_from([(0, 0, SIDE, SIDE), (SIDE, SIDE, 2 * SIDE, 2 * SIDE)]),
        max_size=5,
    ),
    st.integers(1, 28),
    st.sampled_from(["bitmask", "polygon"]),
    seeds,
)
def test_mask_targets(boxes, size, kind, seed):
    """RoIs of any form, also without width, turned around and outside the image."""
    rng = torch.Generator().manual_seed(seed)
    if kind == "bitmask":
        gt_masks = BitMasks(random_masks(3, SIDE, rng))
    else:
        corners = torch.rand(3, 10, generator=rng, dtype=torch.float64) * 2 * SIDE - SIDE / 2
        gt_masks = PolygonMasks([[x.numpy()] for x in corners])
    index = torch.randint(3, (len(boxes),), generator=rng)
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    targets = crop_mask_targets(gt_masks, index, boxes, size)
    assert targets.dtype == torch.bool and targets.shape == (len(boxes), size, size)
    x0, y0, x1, y1 = boxes.unbind(1)
    outside = (x0 > 2 * SIDE) | (y0 > 2 * SIDE) | (x1 < -SIDE) | (y1 < -SIDE)
    assert not targets[outside & (x1 > x0) & (y1 > y0)].any()


@pytest.mark.parametrize(
    "scale, precision",
    [
        (0.0, torch.float32),
        (SMALLEST, torch.float32),
        (LARGEST, torch.float32),
        (LARGEST, torch.bfloat16),
    ],
)
def test_whole_heads(heads_cfg, build_heads, make_batch, run_heads, scale, precision):
    """Features of any size, with RoIs without width and outside the image."""
    features, proposals, targets = make_batch()
    features = {k: (v * scale).clamp(-LARGEST, LARGEST) for k, v in features.items()}
    odd = [[10.0, 10, 10, 40], [40, 40, 10, 10], [-50, -50, -20, -20], [200, 200, 300, 300]]
    for x in proposals:
        x.proposal_boxes.tensor[-4:] = torch.tensor(odd)
    heads = build_heads(heads_cfg)
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        losses, _ = run_heads(heads, (features, proposals, targets))
    assert is_finite(*losses.values())
    sum(losses.values()).backward()
    assert is_finite(*(p.grad for p in heads.parameters()))
    heads.eval()
    with torch.no_grad():
        instances, _ = heads(None, features, proposals)
    for x in instances:
        assert is_finite(x.pred_boxes.tensor, x.scores, x.pred_cams, x.pred_masks)
        assert ((x.pred_masks >= 0) & (x.pred_masks <= 1)).all()
