"""Registering datasets in COCO format with Detectron2's catalogs."""

import os
from typing import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from .coco_format import load_partial_coco
from .shapes import SHAPE_CLASSES, shapes_root

__all__ = ["register_coco_format", "register_datasets", "register_shapes"]

_KEY = "DATASETS.COCO_FORMAT"


def register_coco_format(name: str, json_file: str, image_root: str, **metadata) -> None:
    """Register a COCO-format file, whose annotations may lack masks, as a dataset.

    The same name may be registered again with the same paths.

    Args:
        name (str): name for DATASETS.TRAIN and DATASETS.TEST.
        json_file (str): path of the annotation file.
        image_root (str): folder of the images.
        metadata: more entries for the dataset's metadata.

    Raises:
        ValueError: if the name is taken by a dataset with other paths.
    """
    json_file, image_root = (
        os.path.abspath(os.path.expanduser(path)) for path in (json_file, image_root)
    )
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name)
        known_paths = [known.get("json_file"), known.get("image_root")]
        if [path and os.path.abspath(path) for path in known_paths] == [json_file, image_root]:
            return
        raise ValueError(
            f"The dataset name '{name}' is taken: it stands for {known_paths[0]} with images in "
            f"{known_paths[1]}. Choose another name for {json_file}"
        )
    DatasetCatalog.register(name, lambda: load_partial_coco(json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata
    )


def register_datasets(cfg) -> None:
    """Register the datasets of DATASETS.COCO_FORMAT: [name, annotation file, image folder] each.

    Relative paths start at the current folder.
    """
    for entry in cfg.DATASETS.COCO_FORMAT:
        is_sequence = isinstance(entry, Sequence) and not isinstance(entry, str)
        if not is_sequence or len(entry) != 3 or not all(isinstance(x, str) and x for x in entry):
            raise ValueError(
                f"{_KEY}: each entry must be [name, annotation file, image folder], got {entry!r}"
            )
        try:
            register_coco_format(*entry)
        except ValueError as error:
            raise ValueError(f"{_KEY}: {error}") from None


def register_shapes(root: str) -> None:
    """Register the built-in data in folder `root`: shapes_train, shapes_train_full, shapes_val."""
    for name, split in (("train", "train"), ("train_full", "train"), ("val", "val")):
        _register_shapes_file(
            f"shapes_{name}",
            os.path.join(root, "annotations", f"{name}.json"),
            os.path.join(root, split),
        )


def _register_shapes_file(name: str, json_file: str, image_root: str) -> None:
    def load():
        if not os.path.isfile(json_file):
            raise FileNotFoundError(
                f"There is no {json_file}: write the built-in data with "
                "'python tools/prepare_shapes.py' (it uses the environment variable "
                "DETECTRON2_DATASETS, if that is set, as the dataset does)"
            )
        return load_partial_coco(json_file, image_root, name)

    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
        thing_classes=list(SHAPE_CLASSES),
    )


register_shapes(shapes_root())
