"""Training in lower precision (SOLVER.AMP)."""

import functools

import torch
from detectron2.config import CfgNode

PRECISIONS = ("float16", "bfloat16")


def check_precision(cfg: CfgNode) -> None:
    """
    Args:
        cfg (CfgNode): ``SOLVER.AMP`` and ``MODEL.DEVICE`` are used.

    Raises:
        ValueError: for an unknown precision, or float16 without a GPU.
    """
    amp = cfg.SOLVER.AMP
    if amp.PRECISION not in PRECISIONS:
        raise ValueError(f"SOLVER.AMP.PRECISION is {amp.PRECISION!r}, choose from {PRECISIONS}")
    on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    if amp.ENABLED and amp.PRECISION == "float16" and not on_gpu:
        raise ValueError(
            f"SOLVER.AMP.ENABLED with float16 needs a GPU, and MODEL.DEVICE is {cfg.MODEL.DEVICE}: "
            "set SOLVER.AMP.ENABLED False or SOLVER.AMP.PRECISION bfloat16"
        )


def train_in_bfloat16(model: torch.nn.Module) -> None:
    """
    Let a model compute its losses under bfloat16 autocast. It needs no scale of the loss, because
    bfloat16 has the range of float32. In evaluation the model computes as before.

    Args:
        model (nn.Module): with Detectron2's `device` attribute; changed in place.
    """
    forward = model.forward

    @functools.wraps(forward)
    def forward_in_bfloat16(*args, **kwargs):
        device_type = model.device.type
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=model.training):
            return forward(*args, **kwargs)

    model.forward = forward_in_bfloat16
