"""Backbones beside Detectron2's own."""

from .efficientnet_lite import EfficientNetLite, build_efficientnet_lite_fpn_backbone
