"""Optimizers: Detectron2's SGD, or AdamW with a slower backbone."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """
    Args:
        cfg (CfgNode): ``SOLVER.OPTIMIZER`` chooses; see the config for the keys used.
        model (nn.Module): its parameters; those whose names begin with "backbone.bottom_up." learn
            with ``SOLVER.BACKBONE_MULTIPLIER`` times the rate.

    Raises:
        ValueError: for an unknown ``SOLVER.OPTIMIZER``.
    """
    if cfg.SOLVER.OPTIMIZER == "SGD":
        if cfg.SOLVER.BACKBONE_MULTIPLIER != 1.0:
            raise ValueError("SOLVER.BACKBONE_MULTIPLIER works with SOLVER.OPTIMIZER ADAMW only")
        return build_sgd(cfg, model)
    if cfg.SOLVER.OPTIMIZER != "ADAMW":
        raise ValueError(f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}, choose SGD or ADAMW")

    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    in_backbone = {p: n.startswith("backbone.bottom_up.") for n, p in model.named_parameters()}
    split = []
    for group in groups:
        for slow, factor in ((False, 1.0), (True, cfg.SOLVER.BACKBONE_MULTIPLIER)):
            params = [p for p in group["params"] if in_backbone[p] == slow]
            if params:
                split.append({**group, "params": params, "lr": group["lr"] * factor})
    optimizer = torch.optim.AdamW(
        split, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
    )
    return maybe_add_gradient_clipping(cfg, optimizer)
