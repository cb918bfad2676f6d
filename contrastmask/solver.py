"""Optimizers: Detectron2's SGD, or AdamW with a slower backbone."""

import torch
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping


def build_optimizer(cfg, model):
    """
    Args:
        cfg (CfgNode): ``SOLVER.OPTIMIZER`` chooses; see the config for the keys used.
        model (nn.Module): its parameters; those whose names begin with "backbone.bottom_up." learn
            with ``SOLVER.BACKBONE_MULTIPLIER`` times the rate.

    Returns:
        torch.optim.Optimizer

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
    backbone = {
        id(p) for name, p in model.named_parameters() if name.startswith("backbone.bottom_up.")
    }
    split = []
    for group in groups:
        group = {k: v for k, v in group.items() if k != "param_names"}
        slow = [p for p in group["params"] if id(p) in backbone]
        fast = [p for p in group["params"] if id(p) not in backbone]
        rate = group.get("lr", cfg.SOLVER.BASE_LR)
        if fast:
            split.append({**group, "params": fast})
        if slow:
            slow_rate = rate * cfg.SOLVER.BACKBONE_MULTIPLIER
            split.append({**group, "params": slow, "lr": slow_rate})
    optimizer = torch.optim.AdamW(
        split, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
    )
    return maybe_add_gradient_clipping(cfg, optimizer)
