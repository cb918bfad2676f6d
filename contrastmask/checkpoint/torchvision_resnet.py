"""
Torchvision's ResNet and ResNeXt. Paths like ``torchvision://resnext50_32x4d`` name the first
published ImageNet weights (IMAGENET1K_V1) of a model of the installed torchvision.
"""

import re

from detectron2.utils.file_io import PathHandler, PathManager

from .layout import Layout

_PREFIX = "torchvision://"
_BACKBONE = "backbone.bottom_up."


class TorchvisionPathHandler(PathHandler):
    """Resolves ``torchvision://<model>`` to a downloaded, cached file of ImageNet weights."""

    def _get_supported_prefixes(self):
        return [_PREFIX]

    def _get_local_path(self, path, force=False, **kwargs):
        return PathManager.get_local_path(weights_url(path), force=force, **kwargs)

    def _open(self, path, mode="r", **kwargs):
        return PathManager.open(weights_url(path), mode, **kwargs)

    def _exists(self, path, **kwargs):
        return True

    def _isfile(self, path, **kwargs):
        return True


PathManager.register_handler(TorchvisionPathHandler())


def weights_url(path):
    """
    Args:
        path (str): ``torchvision://<model>``.

    Returns:
        str: where the weights of the model are published.

    Raises:
        FileNotFoundError: if torchvision has no such ResNet or ResNeXt.
    """
    from torchvision.models import get_model_weights, list_models

    name = path[len(_PREFIX) :]
    known = [m for m in list_models() if re.match(r"res(net|next)\d", m)]
    weights = get_model_weights(name).__members__ if name in known else {}
    if "IMAGENET1K_V1" not in weights:
        raise FileNotFoundError(
            f"{path}: torchvision has no such backbone with weights IMAGENET1K_V1; choose from "
            f"{', '.join(known)}"
        )
    return weights["IMAGENET1K_V1"].url


def rename_resnet(name):
    """
    Args:
        name (str): of a tensor of torchvision's ResNet, any depth, width or number of groups.

    Returns:
        str: the name in Detectron2's ResNet, or None for tensors without a place there (the
        ImageNet classifier).
    """
    stem = re.fullmatch(r"(conv|bn)1\.(\w+)", name)
    if stem:
        return f"stem.conv1.{'norm.' if stem[1] == 'bn' else ''}{stem[2]}"
    block = re.fullmatch(r"layer(\d+)\.(\d+)\.(conv|bn|downsample\.)(\d+)\.(\w+)", name)
    if not block:
        return None
    stage, index, kind, number, field = block.groups()
    if kind == "downsample.":
        layer, is_norm = "shortcut", number == "1"
    else:
        layer, is_norm = f"conv{number}", kind == "bn"
    return f"res{int(stage) + 1}.{index}.{layer}.{'norm.' if is_norm else ''}{field}"


def _recognises(state_dict):
    return all(k in state_dict for k in ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight"))


def _rename(name):
    renamed = rename_resnet(name)
    return name if renamed is None else _BACKBONE + renamed


TORCHVISION_RESNET = Layout("torchvision ResNet", _recognises, _rename, covers=(_BACKBONE,))
