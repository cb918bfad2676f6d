"""What all heads are made of: stacks of convolutions, and the precision that they compute in."""

from contextlib import AbstractContextManager

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from torch import nn


def build_conv_stack(
    in_channels: int,
    channels: int,
    num_conv: int,
    norm: str = "",
    *,
    kernel_size: int = 3,
    name: str = "conv",
) -> nn.Sequential:
    """
    Convolutions of one width, each with norm and ReLU, that keep the resolution. Kaiming normal
    weights over fan-out, no bias where there is a norm (authors' code).

    Args:
        in_channels (int): channels of the input.
        channels (int): channels of every convolution.
        num_conv (int): their number; 0 gives an empty stack.
        norm (str): Detectron2 norm name or "".
        kernel_size (int): odd, in cells.
        name (str): the convolutions are called `name` and a number from 1.

    Returns:
        nn.Sequential: its output has :func:`conv_stack_width` channels.
    """
    convs = nn.Sequential()
    for k in range(num_conv):
        conv = Conv2d(
            in_channels if k == 0 else channels,
            channels,
            kernel_size=kernel_size,
            padding=kernel_size // 2,
            bias=not norm,
            norm=get_norm(norm, channels),
            activation=F.relu_,  # in place: half the memory traffic
        )
        weight_init.c2_msra_fill(conv)
        convs.add_module(f"{name}{k + 1}", conv)
    return convs


def conv_stack_width(in_channels: int, channels: int, num_conv: int) -> int:
    """Channels of the output of a stack, which may be empty; see :func:`build_conv_stack`."""
    return channels if num_conv else in_channels


def full_precision(tensor: torch.Tensor) -> AbstractContextManager:
    """
    Context in which operations on the tensor's device are not cast to a lower precision.

    Args:
        tensor (Tensor): any tensor on the device in question.

    Returns:
        context manager; inside, the caller still converts its inputs with ``.float()``.
    """
    return torch.autocast(device_type=tensor.device.type, enabled=False)


def at_least_float32(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Feature maps from which RoIs are pooled. Detectron2's RoIAlign converts boxes to the type of the
    features, and bfloat16 would move the sides of boxes by up to 4 pixels. Under autocast RoIAlign
    computes in float32 anyway.

    Args:
        features (dict[str, Tensor]): of any floating-point type.

    Returns:
        dict[str, Tensor]: the same maps in float32, or float64 where they are.
    """
    return {k: x.to(torch.promote_types(x.dtype, torch.float32)) for k, x in features.items()}


def is_traced() -> bool:
    """bool: whether a graph is recorded, which other numbers of RoIs will go through."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()
