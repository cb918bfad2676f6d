"""The model that a config describes, for training and for everything after it."""

import torch
from detectron2.modeling import build_model as build_detectron2_model


def build_model(cfg):
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
