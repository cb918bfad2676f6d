"""Importing this package registers the heads of ContrastMask with Detectron2."""

from . import backbone
from .box_head import ContrastMaskBoxHead, ContrastMaskBoxPredictor
from .contrastive_head import ContrastiveHead
from .mask_head import ContrastMaskMaskHead
from .proposal_generator import ContrastMaskRPN
from .roi_heads import ContrastMaskROIHeads
