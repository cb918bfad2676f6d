import torch

from contrastmask.modeling.cam import (
    cam_auc,
    class_activation_map,
    min_max_normalize,
    resize_map,
)


def test_cam_is_the_weighted_sum_of_channels():
    features, weights = torch.randn(3, 4, 5, 6), torch.randn(3, 4)
    cam = class_activation_map(features, weights)
    expected = (features * weights[:, :, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(cam, expected)


def test_gradient_reaches_features_only():
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    weights = torch.randn(2, 4, requires_grad=True)
    class_activation_map(features, weights).square().sum().backward()
    assert features.grad.abs().sum() > 0
    assert weights.grad is None


def test_normalized_range():
    maps = min_max_normalize(torch.randn(5, 1, 7, 7) * 100 - 30)
    assert torch.equal(maps.amin((1, 2, 3)), torch.zeros(5))
    torch.testing.assert_close(maps.amax((1, 2, 3)), torch.ones(5))


def test_constant_map_is_zero_with_finite_gradient():
    maps = torch.full((2, 1, 7, 7), 3.0, requires_grad=True)
    normalized = min_max_normalize(maps)
    assert torch.equal(normalized, torch.zeros_like(maps))
    normalized.sum().backward()
    assert torch.isfinite(maps.grad).all()


def test_what_counts_as_constant():
    """Differences up to 1e-5, relative to values above 1."""
    ramp = torch.linspace(0, 1, 12).view(1, 1, 3, 4)
    for size, offset, varies in (
        (1e-4, 0.0, True),
        (2e-5, -0.1, True),
        (5e-6, 0.0, False),
        (5e-6, 0.1, False),
        (0.5, 1e3, True),
        (0.005, 1e3, False),
        (0.005, -1e3, False),
    ):
        expected = ramp if varies else torch.zeros_like(ramp)
        result = min_max_normalize((ramp.double() * size + offset).float())
        torch.testing.assert_close(result, expected, atol=1e-2, rtol=0, msg=str((size, offset)))


def test_cam_is_float32_under_autocast():
    features, weights = torch.randn(2, 4, 3, 3), torch.randn(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cam = class_activation_map(features, weights)
    assert cam.dtype == torch.float32
    torch.testing.assert_close(cam, class_activation_map(features, weights))


def test_resize_of_no_rois():
    assert resize_map(torch.zeros(0, 1, 7, 7), 14).shape == (0, 1, 14, 14)


def test_auc_is_the_share_of_ordered_pairs():
    torch.manual_seed(0)
    cams = torch.randint(0, 5, (4, 6, 6)).float()  # with many equal values
    masks = torch.rand(4, 6, 6) < torch.tensor([0.1, 0.5, 0.5, 0.9])[:, None, None]
    for cam, mask, found in zip(cams, masks, cam_auc(cams, masks)):
        difference = cam[mask][:, None] - cam[~mask]
        expected = (difference > 0).float().mean() + (difference == 0).float().mean() / 2
        torch.testing.assert_close(found, expected)


def test_auc_of_a_smaller_cam():
    cams = torch.tensor([[[3.0, 1.0], [3.0, 1.0]], [[2.0, 2.0], [2.0, 2.0]]])
    left = torch.zeros(2, 8, 8, dtype=torch.bool)
    left[:, :, :4] = True
    torch.testing.assert_close(cam_auc(cams, left), torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(cam_auc(-cams, left), torch.tensor([0.0, 0.5]))
    assert cam_auc(cams, torch.zeros_like(left)).isnan().all()
    assert cam_auc(cams, torch.ones_like(left)).isnan().all()
