"""
The one way from an image to detections and masks. The image is encoded once; detections, and masks
for given boxes, come from its features. Predictions for users, for whole annotation files and for
the evaluation go through the functions here.
"""

import difflib
import operator
import os
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.layers import paste_masks_in_image
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from PIL import Image
from torch import nn

from .checkpoint import ContrastMaskCheckpointer, model_class_split, model_config
from .config import use_available_device
from .data import ContrastMaskDatasetMapper
from .data.images import ImageReader
from .modeling import build_model

__all__ = [
    "BoxMask",
    "ModelInput",
    "Predictor",
    "detect",
    "encode",
    "load_model",
    "masks_and_cams_for_boxes",
    "masks_for_boxes",
]

ImageLike = Union[str, os.PathLike, Image.Image, np.ndarray]

MASK_THRESHOLD = 0.5
# Masks of the size of the image exist for this many boxes at once.
_BOXES_PER_PASTE = 64


class BoxMask(NamedTuple):
    """The mask predicted for one box.

    Attributes:
        mask: compressed RLE with "counts" as str, or a bool array (H, W), of the size of the image.
        score: mean probability of the cells in the mask, 0.5 to 1; 0 if no pixel is in the mask.
    """

    mask: Union[dict, np.ndarray]
    score: float


class Predictor:
    """A trained model, from its checkpoint alone.

    Attributes:
        cfg (CfgNode): frozen.
        model (GeneralizedRCNN): in evaluation mode.
        class_names (tuple[str]): of all classes, by class id.
        base, novel (tuple[str]): names of the classes whose masks were learned from, and of those
            with boxes only.
        class_split (ClassSplit): the same as ids.
        read_image (ImageReader): reads image files as RGB arrays.
    """

    def __init__(
        self,
        model: str,
        weights: Optional[str] = None,
        *,
        device: Optional[str] = None,
        opts: Sequence[str] = (),
    ):
        """
        Args:
            model: a checkpoint that holds its config, as training and tools/convert_checkpoint.py
                write it. With `weights`: a config file, or its name in the project's ``configs``.
            weights: a checkpoint of any layout that the project reads.
            device: such as "cuda" or "cpu"; None for ``MODEL.DEVICE`` of the config. Where there is
                no CUDA it is the CPU.
            opts: KEY VALUE pairs that override the config.

        Raises:
            FileNotFoundError, ValueError: if a file is missing or cannot be read, if the checkpoint
                does not fit the config, or holds none where none is given.
        """
        config_file, weights = ("", model) if weights is None else (model, weights)
        cfg = model_config(os.fspath(config_file), opts, os.fspath(weights))
        if device is not None:
            cfg.MODEL.DEVICE = str(device)
        use_available_device(cfg)
        cfg.freeze()
        self.cfg = cfg
        self.class_split = model_class_split(cfg)
        self.class_names = self.class_split.class_names
        self.base, self.novel = self.class_split.base_names, self.class_split.novel_names
        self.model = load_model(cfg)
        self.read_image = ImageReader.from_config(cfg, format="RGB")
        self._to_input = ModelInput(cfg)
        self._pixels: Optional[np.ndarray] = None
        self._encoded: Optional[Encoded] = None

    def __call__(
        self, image: Union[ImageLike, Sequence[ImageLike]]
    ) -> Union[Instances, List[Instances]]:
        """Detect and segment objects.

        Args:
            image: a path, a PIL image, or an array (H, W, 3) uint8 in RGB order. Gray (H, W) and
                RGBA (H, W, 4) are converted. Files and PIL images are turned as their EXIF
                orientation says. A list or tuple of these gives a list.

        Returns:
            `pred_boxes` (XYXY), `scores`, `pred_classes` (N,) and, of a model with masks,
            `pred_masks` (N, H, W) bool and `pred_cams` (N, h, h), in pixels of the image, on the
            CPU.

        Raises:
            ImageFileError, ValueError, TypeError: if the image cannot be used.
        """
        if isinstance(image, (list, tuple)):
            return [self(x) for x in image]
        self.set_image(image)
        (instances,) = detect(self.model, self._encoded)
        return instances.to("cpu")

    def set_image(self, image: ImageLike) -> None:
        """Encode an image, unless it is the one that was encoded last.

        Args:
            image: as in :meth:`__call__`. It is compared with the last one by its pixels.
        """
        pixels = to_rgb(image, self.read_image)
        if self._pixels is None or not np.array_equal(pixels, self._pixels):
            self._pixels = self._encoded = None
            self._encoded = encode(self.model, [self._to_input(pixels)])
            self._pixels = pixels.copy()  # the caller may write to an array

    def masks_for_boxes(
        self,
        image: Optional[ImageLike],
        boxes: Union[np.ndarray, torch.Tensor, Boxes, Sequence[Sequence[float]]],
        classes: Union[str, int, Sequence[Union[str, int]]],
        *,
        rle: bool = True,
    ) -> List[BoxMask]:
        """Segment the object in each box.

        Args:
            image: as in :meth:`__call__`; None for that of :meth:`set_image`. Only the mask branch
                runs for the image that was used last.
            boxes: (N, 4), XYXY in pixels of the image; clipped to it.
            classes: N names or ids of classes, or one for all boxes.
            rle: masks as compressed RLEs, else as bool arrays (H, W).

        Returns:
            N masks with scores.

        Raises:
            ValueError: for a model without masks, a box without area in the image, an unknown
                class, or other numbers of classes than of boxes.
        """
        if not self.cfg.MODEL.MASK_ON:
            raise ValueError("MODEL.MASK_ON is False: this model predicts no masks")
        if image is not None:
            self.set_image(image)
        elif self._encoded is None:
            raise ValueError("There is no image yet: give one, or call set_image first")
        boxes = np.asarray(getattr(boxes, "tensor", boxes), dtype=np.float64)
        if boxes.shape[1:] != (4,) and boxes.size:
            raise ValueError(f"Boxes have to be (N, 4): x0, y0, x1, y1; they are {boxes.shape}")
        boxes = boxes.reshape(-1, 4)
        ids = self._class_ids(classes, len(boxes))
        (masks,) = masks_for_boxes(self.model, self._encoded, [boxes], [ids], rle=rle)
        return masks

    def _class_ids(self, classes, number: int) -> List[int]:
        if isinstance(classes, (str, int, np.integer)):
            classes = [classes] * number
        ids = [self._class_id(x) for x in classes]
        if len(ids) != number:
            raise ValueError(f"There are {number} boxes and {len(ids)} classes")
        return ids

    def _class_id(self, x) -> int:
        if isinstance(x, str) and x in self.class_names:
            return self.class_names.index(x)
        if not isinstance(x, str) and 0 <= operator.index(x) < len(self.class_names):
            return operator.index(x)
        close = difflib.get_close_matches(str(x), self.class_names, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see class_names"
        raise ValueError(f"The model has no class {x!r}; {hint}")


def load_model(cfg, weights: Optional[str] = None) -> nn.Module:
    """
    Args:
        cfg (CfgNode):
        weights: checkpoint; None for ``MODEL.WEIGHTS``.

    Returns:
        Detector with these weights, in evaluation mode, on ``MODEL.DEVICE``.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if none is named, or it does not fit the model or is not complete.
    """
    model = build_model(cfg).eval()
    ContrastMaskCheckpointer(model, require_all=True).load(weights or cfg.MODEL.WEIGHTS)
    return model


def to_rgb(image: ImageLike, reader: ImageReader) -> np.ndarray:
    """
    Args:
        image: as in :meth:`Predictor.__call__`.
        reader: of files and PIL images, as RGB.

    Returns:
        (H, W, 3) uint8, RGB; perhaps the array that was given.
    """
    if isinstance(image, (str, os.PathLike)):
        return reader(os.fspath(image))
    if isinstance(image, Image.Image):
        return reader.convert(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"An image is a path, a PIL image or an array (H, W, 3), not a {type(image).__name__}"
        )
    channels = image.shape[2:] or (1,)
    allowed = image.ndim > 1 and channels in ((1,), (3,), (4,))
    if not allowed or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            "An image has to be an array (H, W, 3) of uint8, RGB, or gray or RGBA; it is "
            f"{image.shape} of {image.dtype}"
        )
    if channels == (1,):
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return image[:, :, :3]


class ModelInput:
    """Makes inputs of the model from images, as the evaluation does."""

    def __init__(self, cfg):
        mapper = ContrastMaskDatasetMapper(cfg, is_train=False)
        self._augmentations, self._format = mapper.augmentations, mapper.image_format

    def __call__(self, pixels: np.ndarray) -> Dict[str, object]:
        """
        Args:
            pixels: (H, W, 3) uint8, RGB.

        Returns:
            "image" (C, h, w) uint8 tensor, and "height" and "width" of the given image.
        """
        height, width = pixels.shape[:2]
        image = pixels
        if self._format != "RGB":
            image = utils.convert_PIL_to_numpy(Image.fromarray(pixels), self._format)
        augmented = T.AugInput(image)
        self._augmentations(augmented)
        channels_first = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        return {"image": torch.from_numpy(channels_first), "height": height, "width": width}


class Encoded(NamedTuple):
    """A batch of images after the backbone.

    Attributes:
        inputs: of the model.
        images: normalized and padded.
        features: name -> (N, C, H, W).
    """

    inputs: List[dict]
    images: ImageList
    features: Dict[str, torch.Tensor]

    def file_size(self, index: int) -> Tuple[int, int]:
        """Height and width of an image file, in pixels."""
        height, width = self.images.image_sizes[index]
        x = self.inputs[index]
        return x.get("height", height), x.get("width", width)


@torch.no_grad()
def encode(model: nn.Module, inputs: List[dict]) -> Encoded:
    """
    Args:
        model (GeneralizedRCNN): in evaluation mode.
        inputs: in Detectron2's format.
    """
    images = model.preprocess_image(inputs)
    return Encoded(inputs, images, model.backbone(images.tensor))


@torch.no_grad()
def detect(model: nn.Module, encoded: Encoded) -> List[Instances]:
    """
    Args:
        model (GeneralizedRCNN): in evaluation mode.
        encoded: N images.

    Returns:
        N Instances on the model's device, in pixels of the image files.
    """
    if model.proposal_generator is None:  # MODEL.LOAD_PROPOSALS
        proposals = [x["proposals"].to(model.device) for x in encoded.inputs]
    else:
        proposals, _ = model.proposal_generator(encoded.images, encoded.features, None)
    instances, _ = model.roi_heads(encoded.images, encoded.features, proposals, None)
    return [detector_postprocess(x, *encoded.file_size(i)) for i, x in enumerate(instances)]


@torch.no_grad()
def masks_for_boxes(
    model: nn.Module,
    encoded: Encoded,
    boxes: Sequence[np.ndarray],
    classes: Sequence[Sequence[int]],
    *,
    rle: bool = True,
) -> List[List[BoxMask]]:
    """
    Args:
        model (GeneralizedRCNN): in evaluation mode, with a mask branch.
        encoded: N images.
        boxes: N arrays (R, 4), XYXY in pixels of the image files; clipped to the images.
        classes: N lists of R class ids.
        rle: masks as compressed RLEs, else as bool arrays.

    Returns:
        N lists of R masks.

    Raises:
        ValueError: for a box that is not finite or has no area in its image.
    """
    masks, _ = masks_and_cams_for_boxes(model, encoded, boxes, classes, rle=rle)
    return masks


def masks_and_cams_for_boxes(
    model: nn.Module,
    encoded: Encoded,
    boxes: Sequence[np.ndarray],
    classes: Sequence[Sequence[int]],
    *,
    rle: bool = True,
) -> Tuple[List[List[BoxMask]], List[torch.Tensor]]:
    """
    Args, errors: see :func:`masks_for_boxes`.

    Returns:
        N lists of R masks, and N tensors (R, h, w), the CAM of its class in each box.
    """
    sizes = [encoded.file_size(i) for i in range(len(boxes))]
    boxes = [_clip(x, *size) for x, size in zip(boxes, sizes)]
    if not sum(map(len, boxes)):
        return [[] for _ in boxes], [torch.zeros(0, 1, 1) for _ in boxes]
    given = []
    for x, ids, (height, width), image_size in zip(
        boxes, classes, sizes, encoded.images.image_sizes
    ):
        instances = Instances(image_size)
        scale = np.tile([image_size[1] / width, image_size[0] / height], 2)
        instances.pred_boxes = Boxes(torch.from_numpy(x * scale).float())
        instances.pred_classes = torch.tensor(ids, dtype=torch.int64)
        given.append(instances.to(model.device))
    results = model.roi_heads.forward_with_given_boxes(encoded.features, given, encoded.images)
    masks = [
        _paste(result.pred_masks[:, 0], x, size, rle)
        for result, x, size in zip(results, boxes, sizes)
    ]
    return masks, [x.pred_cams for x in results]


def _clip(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    clipped = boxes.clip(0, np.tile([width, height], 2))
    usable = np.isfinite(boxes).all(axis=1) & (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    if not usable.all():
        index = int(usable.argmin())
        raise ValueError(
            f"Box {index}, {boxes[index].tolist()} (x0, y0, x1, y1), has no area in the image of "
            f"{width} x {height} pixels"
        )
    return clipped


def _paste(probabilities, boxes, size, rle) -> List[BoxMask]:
    """
    Args:
        probabilities (Tensor): (R, h, w), of the cells of each box.
        boxes (ndarray): (R, 4), XYXY in pixels of the image file.
        size (tuple): height and width of the image file.
        rle (bool): see :func:`masks_for_boxes`.
    """
    inside = probabilities >= MASK_THRESHOLD
    scores = (probabilities * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)
    boxes = torch.from_numpy(boxes).float().to(probabilities.device)
    masks = []
    for start in range(0, len(boxes), _BOXES_PER_PASTE):
        chunk = slice(start, start + _BOXES_PER_PASTE)
        pasted = paste_masks_in_image(
            probabilities[chunk], Boxes(boxes[chunk]), size, threshold=MASK_THRESHOLD
        )
        for mask, score in zip(pasted.cpu().numpy(), scores[chunk].tolist()):
            score = round(score, 4) if mask.any() else 0.0
            masks.append(BoxMask(_to_rle(mask) if rle else mask, score))
    return masks


def _to_rle(mask) -> dict:
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
