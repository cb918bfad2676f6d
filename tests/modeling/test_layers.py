import pytest
import torch
import torch.nn.functional as F

from contrastmask.modeling.layers import (
    at_least_float32,
    build_conv_stack,
    conv_stack_width,
    full_precision,
)


@pytest.mark.parametrize("num_conv", [0, 1, 3])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_width_and_resolution_of_a_stack(num_conv, kernel_size):
    stack = build_conv_stack(5, 7, num_conv, kernel_size=kernel_size)
    result = stack(torch.randn(2, 5, 6, 9))
    assert result.shape == (2, conv_stack_width(5, 7, num_conv), 6, 9)
    assert result.shape[1] == (7 if num_conv else 5)
    assert [name for name, _ in stack.named_children()] == [
        f"conv{k}" for k in range(1, num_conv + 1)
    ]


def test_a_stack_in_words():
    stack = build_conv_stack(3, 4, 2, name="layer")
    x = torch.randn(2, 3, 5, 6)
    expected = x
    for layer in (stack.layer1, stack.layer2):
        expected = F.conv2d(expected, layer.weight, layer.bias, padding=1).relu()
    assert torch.equal(stack(x), expected)
    normed = build_conv_stack(3, 4, 1, "BN")
    assert normed.conv1.bias is None and isinstance(normed.conv1.norm, torch.nn.BatchNorm2d)


def test_initial_weights_follow_the_fan_out():
    (conv,) = build_conv_stack(8, 64, 1)
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert not conv.bias.any()


def test_full_precision_under_autocast():
    x = torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x.T).dtype == torch.bfloat16
        with full_precision(x):
            assert (x @ x.T).dtype == torch.float32


def test_features_in_at_least_float32():
    types = {
        torch.bfloat16: torch.float32,
        torch.float16: torch.float32,
        torch.float32: torch.float32,
        torch.float64: torch.float64,
    }
    features = at_least_float32({str(t): torch.ones(2, dtype=t) for t in types})
    assert {k: x.dtype for k, x in features.items()} == {str(t): types[t] for t in types}
