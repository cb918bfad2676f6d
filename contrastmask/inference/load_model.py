"""A trained model from a config and a checkpoint."""

from ..checkpoint import ContrastMaskCheckpointer
from ..modeling import build_model

__all__ = ["load_model"]


def load_model(cfg, weights=None):
    """
    Args:
        cfg (CfgNode):
        weights (str or None): checkpoint; None for MODEL.WEIGHTS.

    Returns:
        nn.Module: detector with these weights, in evaluation mode, on MODEL.DEVICE.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if none is named, or it does not fit the model or is not complete.
    """
    model = build_model(cfg).eval()
    ContrastMaskCheckpointer(model, require_all=True).load(weights or cfg.MODEL.WEIGHTS)
    return model
