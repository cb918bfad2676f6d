"""The stacks of convolutions that all heads are made of."""

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from torch import nn


def build_conv_stack(in_channels, channels, num_conv, norm="", *, kernel_size=3, name="conv"):
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
        nn.Sequential: its output has `channels` channels, or `in_channels` if it is empty.
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
