"""Resizing of images by Pillow or OpenCV, also for test-time augmentation."""

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import DatasetMapperTTA
from PIL import Image

__all__ = [
    "OpenCVResizeShortestEdge",
    "OpenCVResizeTransform",
    "TTAMapper",
    "with_resize_backend",
]


class OpenCVResizeTransform(T.ResizeTransform):
    """Detectron2's resizing, with OpenCV's bilinear interpolation for images.

    Unlike Pillow it does not smooth when an image becomes smaller. Segmentation maps are resized as
    in Detectron2.
    """

    def apply_image(self, img, interp=None):
        """
        Args:
            img (ndarray): (H, W) or (H, W, C), uint8 or float.
            interp (int): a mode of Pillow other than bilinear is left to Detectron2.

        Returns:
            ndarray: of the new height and width, and the same type.
        """
        if interp not in (None, Image.BILINEAR):
            return super().apply_image(img, interp)
        assert img.shape[:2] == (self.h, self.w)
        size = (self.new_w, self.new_h)
        resized = cv2.resize(np.ascontiguousarray(img), size, interpolation=cv2.INTER_LINEAR)
        return resized.reshape(*resized.shape[:2], *img.shape[2:])

    def inverse(self):
        return OpenCVResizeTransform(self.new_h, self.new_w, self.h, self.w)


class OpenCVResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's augmentation with :class:`OpenCVResizeTransform`.

    One factor gives both sides, as in the published training; Detectron2 multiplies twice if the
    longer side decides, and rounds one in some thousand shapes to another pixel.
    """

    def get_transform(self, image):
        h, w = image.shape[:2]
        if self.is_range:
            short = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            short = np.random.choice(self.short_edge_length)
        if short == 0:
            return T.NoOpTransform()
        factor = min(short / min(h, w), self.max_size / max(h, w))
        return OpenCVResizeTransform(h, w, int(h * factor + 0.5), int(w * factor + 0.5))


def with_resize_backend(augmentations, backend):
    """
    Args:
        augmentations (list[Augmentation]): Detectron2's.
        backend (str): "pil" or "opencv", see `INPUT.RESIZE_BACKEND`.

    Returns:
        list[Augmentation]: the same, with the resizing of images done by that library.

    Raises:
        ValueError: for an unknown backend.
    """
    if backend not in ("pil", "opencv"):
        raise ValueError(f"INPUT.RESIZE_BACKEND is {backend!r}, choose 'pil' or 'opencv'")
    if backend == "pil":
        return augmentations
    return [_to_opencv(x) if isinstance(x, T.ResizeShortestEdge) else x for x in augmentations]


def _to_opencv(resize):
    style = "range" if resize.is_range else "choice"
    return OpenCVResizeShortestEdge(resize.short_edge_length, resize.max_size, style)


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
