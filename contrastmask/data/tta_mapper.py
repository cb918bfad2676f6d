"""The versions of an image that test-time augmentation looks at."""

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import DatasetMapperTTA

from .augmentation import with_resize_backend

__all__ = ["TTAMapper"]


class TTAMapper:
    """Detectron2's :class:`DatasetMapperTTA`, but images are resized as the config says."""

    def __init__(self, cfg):
        """
        Args:
            cfg (CfgNode): `TEST.AUG` and `INPUT.RESIZE_BACKEND` count.
        """
        aug = cfg.TEST.AUG
        resizes = [T.ResizeShortestEdge(size, aug.MAX_SIZE) for size in aug.MIN_SIZES]
        self._resizes = with_resize_backend(resizes, cfg.INPUT.RESIZE_BACKEND)
        # To Detectron2 a size of 0 means the size that an image has.
        self._flip = DatasetMapperTTA(min_sizes=[0], max_size=aug.MAX_SIZE, flip=aug.FLIP)

    def __call__(self, dataset_dict):
        """
        Args:
            dataset_dict (dict): with "image" (C, H, W) uint8, and "height" and "width" of the file.

        Returns:
            list[dict]: copies with another "image", and "transforms" (TransformList), which lead
            from the file to it. In the order of `TEST.AUG.MIN_SIZES`, each size also flipped if
            `TEST.AUG.FLIP`.
        """
        image = dataset_dict["image"].permute(1, 2, 0).numpy()
        versions = []
        for resize in self._resizes:
            resized = resize.get_transform(image).apply_image(image)
            resized = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
            versions += self._flip({**dataset_dict, "image": resized})
        return versions
