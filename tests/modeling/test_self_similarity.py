import pytest
import torch
import torch.nn.functional as F

from contrastmask.modeling import self_similarity
from contrastmask.modeling.cam import resize_map
from contrastmask.modeling.self_similarity import enhance_by_self_similarity


def enhance_with_whole_matrix(x):
    flat = x.flatten(2)
    directions = F.normalize(flat, dim=1)
    weights = torch.softmax(directions.transpose(1, 2) @ directions, dim=2)
    return (flat @ weights.transpose(1, 2)).view_as(x)


def test_self_similarity_equals_the_materialized_form_with_gradients():
    first = torch.randn(3, 6, 5, 5, requires_grad=True)
    second = first.detach().clone().requires_grad_()
    direction = torch.randn(3, 6, 5, 5)
    enhanced, expected = enhance_by_self_similarity(first), enhance_with_whole_matrix(second)
    torch.testing.assert_close(enhanced, expected, atol=1e-5, rtol=1e-5)
    (enhanced * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rois_at_once, kept", [(1, 0), (1, 3), (2, 0), (2, 2), (5, 0), (5, 5)])
@pytest.mark.parametrize("size", [None, 4, 3, 8, 11])
def test_chunks_and_resizing_change_nothing(monkeypatch, rois_at_once, kept, size):
    monkeypatch.setattr(self_similarity, "_MAX_ELEMENTS", rois_at_once * 64**2)
    monkeypatch.setattr(self_similarity, "_MAX_KEPT_ELEMENTS", kept * 64**2)
    first = torch.randn(5, 6, 8, 8, requires_grad=True)
    second = first.detach().clone().requires_grad_()
    enhanced = enhance_by_self_similarity(first, size)
    expected = enhance_with_whole_matrix(second)
    if size is not None:
        expected = resize_map(expected, size)
    torch.testing.assert_close(enhanced, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(expected)
    (enhanced * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        again = enhance_by_self_similarity(first, size)
    torch.testing.assert_close(again, enhanced)


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_gradient_is_the_derivative(monkeypatch, size, kept):
    monkeypatch.setattr(self_similarity, "_MAX_ELEMENTS", 12**2)  # one RoI at a time
    monkeypatch.setattr(self_similarity, "_MAX_KEPT_ELEMENTS", kept * 12**2)
    features = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: enhance_by_self_similarity(x, size), (features,))


def test_a_pixel_without_features_gives_no_nan():
    features = torch.zeros(1, 4, 3, 3)
    features[0, :, 0, 0] = 1.0
    features.requires_grad_()
    enhance_by_self_similarity(features, 2).sum().backward()
    assert torch.isfinite(features.grad).all()


def test_similarities_that_are_not_kept_are_computed_again(monkeypatch):
    monkeypatch.setattr(self_similarity, "_MAX_ELEMENTS", 64**2)
    monkeypatch.setattr(self_similarity, "_MAX_KEPT_ELEMENTS", 2 * 64**2)
    calls, forward = [], self_similarity._enhance
    monkeypatch.setattr(
        self_similarity, "_enhance", lambda *args: calls.append(args) or forward(*args)
    )
    enhanced = enhance_by_self_similarity(torch.randn(5, 6, 8, 8, requires_grad=True), 4)
    assert len(calls) == 5
    enhanced.sum().backward()
    assert len(calls) == 5 + 3


@pytest.mark.parametrize("requires_grad", [False, True])
def test_no_rois(requires_grad):
    features = torch.zeros(0, 4, 6, 6, requires_grad=requires_grad)
    assert enhance_by_self_similarity(features, 3).shape == (0, 4, 3, 3)
