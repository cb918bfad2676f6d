"""The checkpointer of the project: Detectron2's, plus layouts that it recognises by their names."""

import logging

from detectron2.checkpoint import DetectionCheckpointer

from .efficientnet_lite import is_efficientnet_lite, rename_efficientnet_lite

# Description of a layout -> (recognises a state dict, renames it to ours)
_LAYOUTS = {"EfficientNet-Lite (ImageNet)": (is_efficientnet_lite, rename_efficientnet_lite)}


class ContrastMaskCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that also loads the layouts listed in this file."""

    def _load_file(self, filename):
        loaded = super()._load_file(filename)
        for name, (recognises, rename) in _LAYOUTS.items():
            if recognises(loaded["model"]):
                logging.getLogger(__name__).info(f"{filename} has the layout {name}")
                loaded["model"] = rename(loaded["model"])
        return loaded
