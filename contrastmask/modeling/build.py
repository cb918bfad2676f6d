"""The model that a config describes, for training and for everything after it."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model as build_detectron2_model
from torch import nn


def build_model(cfg: CfgNode) -> nn.Module:
    """
    Args:
        cfg (CfgNode):

    Returns:
        nn.Module: on MODEL.DEVICE, in the memory format that MODEL.CHANNELS_LAST asks for.
    """
    model = build_detectron2_model(cfg)
    if cfg.MODEL.CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
    return model


def freeze_parts(model: nn.Module, prefixes: Sequence[str]) -> None:
    """
    Parameters stop learning, and batch normalization keeps its statistics (MODEL.FROZEN_PARTS).

    Args:
        model (nn.Module): changed in place.
        prefixes (list[str]): of parameter names; whole parts between dots.

    Raises:
        ValueError: if there is no such part.
    """
    all_parameters = dict(model.named_parameters())
    for prefix in prefixes:
        parameters = [
            p for name, p in all_parameters.items() if f"{name}.".startswith(f"{prefix}.")
        ]
        if not parameters:
            parts = sorted({name.split(".")[0] for name in all_parameters})
            raise ValueError(
                f"MODEL.FROZEN_PARTS: the model has no part {prefix!r}. Give the beginning of "
                f"parameter names, up to a dot; the largest parts are {parts}"
            )
        for parameter in parameters:
            parameter.requires_grad = False
        parent_name, _, name = prefix.rpartition(".")
        parent = model.get_submodule(parent_name)
        if name in dict(parent.named_children()):
            part = getattr(parent, name)
            setattr(parent, name, FrozenBatchNorm2d.convert_frozen_batchnorm(part))
