"""The contrastive head as the benchmark's parts measure it."""

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec

from ..config import add_contrastmask_config
from ..modeling.contrastive_head import ContrastiveHead


def contrastive_head_config(settings):
    """CfgNode: MODEL.ROI_CONTRASTIVE_HEAD with the paper's values, or few channels."""
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    head = cfg.MODEL.ROI_CONTRASTIVE_HEAD
    head.CONV_DIM = head.PROJECTOR_DIM = settings.channels
    head.POOLER_RESOLUTION = settings.side
    return cfg


def build_contrastive_head(settings):
    """ContrastiveHead in training mode, with random weights."""
    torch.manual_seed(0)
    shape = ShapeSpec(channels=settings.channels, height=settings.side, width=settings.side)
    return ContrastiveHead(contrastive_head_config(settings), shape).to(settings.device).train()
