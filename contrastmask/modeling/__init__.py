"""Importing this package registers the heads of ContrastMask with Detectron2."""

from . import backbone
from .box_head import ContrastMaskBoxHead, ContrastMaskBoxPredictor
from .build import build_model, freeze_parts
from .contrastive_head import ContrastiveHead
from .mask_head import ContrastMaskMaskHead
from .published_rules import ContrastMaskRPN
from .roi_heads import ContrastMaskROIHeads
