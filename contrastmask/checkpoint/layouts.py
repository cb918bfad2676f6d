"""The layouts that are recognised, and finding which one a file has."""

import numpy as np
import torch

from .efficientnet_lite import EFFICIENTNET_LITE
from .mmdetection import MMDETECTION, check_mmdetection_version
from .reading import read_pickle_file, read_torch_file
from .torchvision_resnet import TORCHVISION_RESNET

LAYOUTS = (MMDETECTION, TORCHVISION_RESNET, EFFICIENTNET_LITE)


def find_layout(state_dict):
    """
    Args:
        state_dict (dict[str, Tensor]):

    Returns:
        Layout: the one of its names, or None for Detectron2's.
    """
    return next((x for x in LAYOUTS if x.recognises(state_dict)), None)


def unwrap_state_dict(loaded):
    """
    Args:
        loaded (dict): content of a file: a state dict, or one under "model" or "state_dict".

    Returns:
        dict[str, Tensor or ndarray]: the state dict.

    Raises:
        ValueError: if there are other things than tensors in it, or it is too old.
    """
    if not isinstance(loaded, dict):
        raise ValueError(f"it holds a {type(loaded).__name__}, not a dict of tensors")
    if isinstance(loaded.get("state_dict"), dict):
        check_mmdetection_version(loaded.get("meta"))
        loaded = loaded["state_dict"]
    elif isinstance(loaded.get("model"), dict):
        loaded = loaded["model"]
    for name, value in loaded.items():
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            raise ValueError(f"its entry {name!r} is a {type(value).__name__}, not a tensor")
    return loaded


def to_project_names(state_dict):
    """
    Args:
        state_dict (dict[str, Tensor]): perhaps with the prefix "module." of data parallel training.

    Returns:
        tuple[dict[str, Tensor], Layout]: the tensors under this project's names, and the layout
        they had. For Detectron2's: the same object, and None.
    """
    stripped = state_dict
    if next(iter(state_dict), "").startswith("module."):
        stripped = {name.removeprefix("module."): v for name, v in state_dict.items()}
    layout = find_layout(stripped)
    return (layout.convert(stripped), layout) if layout else (state_dict, None)


def read_weights(path, trusted=False):
    """
    Args:
        path (str): a local file in one of the layouts or in Detectron2's.
        trusted (bool): also read Python objects, which can run code.

    Returns:
        tuple[dict[str, Tensor], Layout]: the tensors under this project's names, and the layout
        they had, None for Detectron2's.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it cannot be read.
    """
    if path.endswith(".pkl"):
        arrays = read_pickle_file(path).get("model")
        if not isinstance(arrays, dict):
            raise ValueError(f"checkpoint {path}: only Detectron2's own .pkl files can be read")
        return {k: torch.as_tensor(v) for k, v in arrays.items()}, None
    loaded = read_torch_file(path, trusted=trusted)
    try:
        return to_project_names(unwrap_state_dict(loaded))
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from error
