"""Backbones that Detectron2 does not have."""

from .efficientnet_lite import EfficientNetLite, build_efficientnet_lite_fpn_backbone
from .stored_bn_resnet import StoredStatisticsBatchNorm2d, build_stored_bn_resnet_fpn_backbone
