"""The layouts that are recognised, and finding which one a file has."""

import logging

import numpy as np
import torch

from .efficientnet_lite import EFFICIENTNET_LITE
from .mmdetection import MMDETECTION, check_mmdetection_version
from .reading import read_pickle_file, read_torch_file
from .torchvision_resnet import TORCHVISION_RESNET

logger = logging.getLogger(__name__)

LAYOUTS = (MMDETECTION, TORCHVISION_RESNET, EFFICIENTNET_LITE)
# Endings of the files that `read_model_zoo_file` is for.
MODEL_ZOO_FILES = (".pkl", ".pyth")


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
    _check_tensors(loaded)
    return loaded


def _check_tensors(state_dict):
    for name, value in state_dict.items():
        if not isinstance(name, str):
            raise ValueError(f"it has an entry {name!r}, which is not the name of a tensor")
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            raise ValueError(f"its entry {name!r} is a {type(value).__name__}, not a tensor")


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


def read_model_zoo_file(path, trusted=False):
    """
    What Detectron2's checkpointer makes of these files, without running code from them.

    Args:
        path (str): a local file: .pkl of Detectron2's or Caffe2's model zoo, .pyth of pycls.
        trusted (bool): also read Python objects, which can run code.

    Returns:
        dict: the tensors or arrays under "model". If "matching_heuristics" is True, names have to
        be matched with the model's, with special rules if "__author__" is "Caffe2".

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it cannot be read.
    """
    read = read_pickle_file if path.endswith(".pkl") else read_torch_file
    loaded = read(path, trusted=trusted)
    try:
        if not isinstance(loaded, dict):
            raise ValueError(f"it holds a {type(loaded).__name__}, not a dict of tensors")
        loaded = _from_pickle(loaded) if path.endswith(".pkl") else _from_pycls(loaded)
        _check_tensors(loaded["model"])
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from error
    return loaded


def _from_pickle(loaded):
    if isinstance(loaded.get("model"), dict):  # Detectron2's own
        logger.info(f"Reading a file from {loaded.get('__author__', 'an unknown author')!r}")
        return loaded
    blobs = loaded.get("blobs", loaded)
    if not isinstance(blobs, dict):
        raise ValueError(f"its entry 'blobs' is a {type(blobs).__name__}, not a dict of tensors")
    weights = {k: v for k, v in blobs.items() if not str(k).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _from_pycls(loaded):
    weights = loaded.get("model_state")
    if not isinstance(weights, dict):
        raise ValueError("a .pyth file needs an entry 'model_state', a dict of tensors")
    weights = {k: v for k, v in weights.items() if not str(k).endswith("num_batches_tracked")}
    return {"model": weights, "__author__": "pycls", "matching_heuristics": True}


def read_weights(path, trusted=False):
    """
    Args:
        path (str): a local file in one of the layouts or in one that Detectron2 loads.
        trusted (bool): also read Python objects, which can run code.

    Returns:
        tuple[dict, Layout]: what a checkpoint in Detectron2's layout has to hold, and the layout
        the file had, None for Detectron2's. Under "model" are the tensors, with this project's
        names; or with those of the file, if Detectron2 matches them ("matching_heuristics").

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it cannot be read.
    """
    read = read_model_zoo_file if path.endswith(MODEL_ZOO_FILES) else read_torch_file
    loaded = read(path, trusted=trusted)
    try:
        weights = unwrap_state_dict(loaded)
        weights.update({k: torch.as_tensor(v) for k, v in weights.items()})
        if loaded.get("matching_heuristics") is True:
            author = str(loaded.get("__author__"))
            matched = {"model": weights, "__author__": author, "matching_heuristics": True}
            return matched, None
        weights, layout = to_project_names(weights)
        return {"model": weights}, layout
    except (TypeError, ValueError) as error:  # TypeError: an array of other things than numbers
        raise ValueError(f"checkpoint {path}: {error}") from error
