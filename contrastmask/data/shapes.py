"""The built-in data: images of textured shapes with boxes and masks, as COCO-format files."""

import json
import logging
import os
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import pycocotools.mask as mask_util

from ..atomic_files import is_unfinished, write_whole
from .shape_drawing import SHAPE_BASE_CLASSES, SHAPE_CLASSES, SHAPE_NOVEL_CLASSES, draw_image

__all__ = [
    "SHAPE_BASE_CLASSES",
    "SHAPE_CLASSES",
    "SHAPE_NOVEL_CLASSES",
    "ShapesParams",
    "draw_image",
    "shapes_root",
    "write_shapes",
]

logger = logging.getLogger(__name__)

# Raised whenever the same parameters give other files.
_GENERATOR_VERSION = 2
_PARAMS_FILE = "shapes.json"
# Begins the description in the annotation files.
_DESCRIPTION = "ContrastMask shapes"
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class ShapesParams:
    """What the files of the built-in data depend on."""

    num_train: int = 1000
    num_val: int = 120
    image_size: int = 192
    seed: int = 0

    def __post_init__(self):
        for name in ("num_train", "num_val", "image_size", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a whole number >= 0, got {value!r}")
        if self.num_train < 1 or self.num_val < 1:
            raise ValueError("num_train and num_val must be at least 1")
        if not 64 <= self.image_size <= 4096:
            raise ValueError(f"image_size must be 64 to 4096 pixels, got {self.image_size}")


def _mask_to_segmentation(mask: np.ndarray):
    """COCO segmentation of a boolean mask: compressed RLE if it has holes, else polygons."""
    zoom = 4  # contours run through pixel centers; on the enlarged mask those are near the edge
    large = np.repeat(np.repeat(mask.astype(np.uint8), zoom, axis=0), zoom, axis=1)
    contours, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if (hierarchy[0, :, 3] >= 0).any():
        rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": [int(s) for s in rle["size"]], "counts": rle["counts"].decode("ascii")}
    polygons = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, 0.45 * zoom, True).reshape(-1, 2)
        if len(points) >= 3:
            polygons.append(((points + 0.5) / zoom).round(2).ravel().tolist())
    return polygons


def _annotation(mask: np.ndarray, with_mask: bool) -> dict:
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    annotation = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
    if with_mask:
        annotation["segmentation"] = _mask_to_segmentation(mask)
        annotation["area"] = int(mask.sum())
    return annotation


def _without_novel_masks(full: dict) -> dict:
    """The same COCO data without the masks of novel classes, whose area is then the box's."""
    novel = {c["id"] for c in full["categories"] if c["name"] in SHAPE_NOVEL_CLASSES}
    annotations = []
    for annotation in full["annotations"]:
        if annotation["category_id"] in novel:
            w, h = annotation["bbox"][2:]
            annotation = {k: v for k, v in annotation.items() if k != "segmentation"}
            annotation["area"] = w * h
        annotations.append(annotation)
    return {**full, "annotations": annotations}


def _write_json(path: str, content: dict) -> None:
    with write_whole(path, "w", encoding="utf-8") as f:
        json.dump(content, f)


def _write_split(root: str, split: str, num_images: int, params: ShapesParams) -> dict:
    """Write the images of one split.

    Returns:
        dict: its fully masked COCO data.
    """
    image_dir = os.path.join(root, split)
    os.makedirs(image_dir, exist_ok=True)
    size = params.image_size
    category_ids = {name: i + 1 for i, name in enumerate(SHAPE_CLASSES)}
    images, annotations = [], []
    for number in range(1, num_images + 1):
        image, objects = draw_image(size, [params.seed, ("train", "val").index(split), number])
        file_name = f"{number:06d}.jpg"
        path = os.path.join(image_dir, file_name)
        if not cv2.imwrite(path, image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]):
            raise OSError(f"Cannot write the image {path}. Is the disk full or read-only?")
        images.append({"id": number, "file_name": file_name, "height": size, "width": size})
        for name, mask in objects:
            annotation = {"id": len(annotations) + 1, "image_id": number}
            annotation.update(category_id=category_ids[name], **_annotation(mask, True))
            annotations.append(annotation)
    return {
        "info": {"description": f"{_DESCRIPTION}, {split}", "version": _GENERATOR_VERSION},
        "categories": [{"id": i, "name": name} for name, i in category_ids.items()],
        "images": images,
        "annotations": annotations,
    }


def shapes_root() -> str:
    """Folder of the built-in data: shapes in $DETECTRON2_DATASETS, or in datasets."""
    return os.path.join(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")), "shapes")


def _is_built_in(path: str) -> bool:
    """Whether a file holds annotations of the built-in data."""
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)["info"]["description"].startswith(_DESCRIPTION)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _check_no_other_data(root: str) -> None:
    """Raise ValueError if the folder has annotations of other data, which would be overwritten."""
    folder = os.path.join(root, "annotations")
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        if not (is_unfinished(name) or _is_built_in(path)):
            raise ValueError(
                f"The folder {root} holds other data: {path} is not of the built-in data. Choose "
                "another folder"
            )


def write_shapes(root: str, params: ShapesParams = ShapesParams()) -> bool:
    """Write the built-in data in COCO format, unless it is already there.

    Under `root` there are then the folders ``train`` and ``val`` with images and ``annotations``
    with ``train.json`` (novel classes without masks), ``train_full.json`` (all masks) and
    ``val.json`` (all masks). ``shapes.json`` holds the parameters; it is written last.

    Args:
        root (str): folder to write to; made if it is missing.
        params (ShapesParams): sizes and seed.

    Returns:
        bool: False if the data of these parameters was there and nothing was written.

    Raises:
        ValueError: if the folder has annotations of other data.
    """
    params_path = os.path.join(root, _PARAMS_FILE)
    wanted = {"version": _GENERATOR_VERSION, **asdict(params)}
    if os.path.isfile(params_path):
        try:
            with open(params_path, encoding="utf-8") as f:
                if json.load(f) == wanted:
                    logger.info("The shapes data in %s is up to date.", root)
                    return False
        except ValueError:
            pass  # not a whole file: write everything again
        os.remove(params_path)
    else:
        _check_no_other_data(root)
    annotation_dir = os.path.join(root, "annotations")
    os.makedirs(annotation_dir, exist_ok=True)
    train = _write_split(root, "train", params.num_train, params)
    val = _write_split(root, "val", params.num_val, params)
    _write_json(os.path.join(annotation_dir, "train_full.json"), train)
    _write_json(os.path.join(annotation_dir, "train.json"), _without_novel_masks(train))
    _write_json(os.path.join(annotation_dir, "val.json"), val)
    _write_json(params_path, wanted)
    logger.info("Wrote %d + %d images to %s", params.num_train, params.num_val, root)
    return True
