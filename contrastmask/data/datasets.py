"""Datasets by name: registering and reading them, and the classes that a model gets from them."""

import difflib
import os
from typing import Dict, List, Optional, Sequence, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import filter_images_with_only_crowd_annotations

from .annotation_values import BOX_FORMATS, BOX_MASKS, CROWDS, ReadingOptions
from .coco_format import Annotations, log_reading, read_annotations
from .shapes import SHAPE_CLASSES, shapes_root

__all__ = [
    "annotations_of",
    "class_names_of",
    "describe",
    "forget_annotations",
    "is_in_memory",
    "keep_annotations",
    "model_class_names",
    "reading_options",
    "register_coco_format",
    "register_datasets",
    "register_shapes",
    "set_num_classes",
    "test_records",
    "to_model_classes",
    "training_records",
]

_KEY = "DATASETS.COCO_FORMAT"
# How the datasets of register_coco_format are read, by name.
_options: Dict[str, ReadingOptions] = {}
# Files that were read in this process: name of the dataset -> what they depend on, and content.
_read: Dict[str, Tuple[tuple, Annotations]] = {}


# -- registering ----------------------------------------------------------------------------------


def register_coco_format(
    name: str,
    json_file: str,
    image_root: str,
    options: Optional[ReadingOptions] = None,
    **metadata,
) -> None:
    """Register a COCO-format file, whose annotations may lack masks, as a dataset.

    The same name may be registered again with the same paths, also with other options.

    Args:
        name (str): name for DATASETS.TRAIN and DATASETS.TEST.
        json_file (str): path of the annotation file.
        image_root (str): folder of the images.
        options (ReadingOptions): how crowds and boxes are meant.
        metadata: more entries for the dataset's metadata.

    Raises:
        ValueError: if the name is taken by a dataset with other paths.
    """
    json_file, image_root = (
        os.path.abspath(os.path.expanduser(path)) for path in (json_file, image_root)
    )
    options = options or ReadingOptions()
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name)
        known_paths = [known.get("json_file"), known.get("image_root")]
        if [path and os.path.abspath(path) for path in known_paths] != [json_file, image_root]:
            raise ValueError(
                f"The dataset name '{name}' is taken: it stands for {known_paths[0]} with images "
                f"in {known_paths[1]}. Choose another name for {json_file}"
            )
        DatasetCatalog.remove(name)
    _options[name] = options
    DatasetCatalog.register(name, lambda: _read_registered(name).records)
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata
    )


def register_datasets(cfg) -> None:
    """Register the datasets of DATASETS.COCO_FORMAT: [name, annotation file, image folder] each.

    Relative paths start at the current folder.

    Raises:
        ValueError: for a malformed entry or an unknown way of reading; it names the key.
    """
    options = reading_options(cfg)
    for entry in cfg.DATASETS.COCO_FORMAT:
        is_sequence = isinstance(entry, Sequence) and not isinstance(entry, str)
        if not is_sequence or len(entry) != 3 or not all(isinstance(x, str) and x for x in entry):
            raise ValueError(
                f"{_KEY}: each entry must be [name, annotation file, image folder], got {entry!r}"
            )
        try:
            register_coco_format(*entry, options)
        except ValueError as error:
            raise ValueError(f"{_KEY}: {error}") from None


def reading_options(cfg) -> ReadingOptions:
    """
    Args:
        cfg (CfgNode): ``DATASETS.CROWDS``, ``BOX_FORMAT``, ``BOXES_FROM_MASKS`` and
            ``BOX_MASKS`` are used.

    Raises:
        ValueError: for an unknown value; it names the key.
    """
    keys = cfg.DATASETS
    known_values = {"CROWDS": CROWDS, "BOX_FORMAT": tuple(BOX_FORMATS), "BOX_MASKS": BOX_MASKS}
    for name, known in known_values.items():
        if keys[name] not in known:
            raise ValueError(f"DATASETS.{name} is {keys[name]!r}, choose from {', '.join(known)}")
    return ReadingOptions(keys.CROWDS, keys.BOX_FORMAT, keys.BOXES_FROM_MASKS, keys.BOX_MASKS)


def register_shapes(root: str) -> None:
    """Register the built-in data in folder `root`: shapes_train, shapes_train_full, shapes_val."""
    for name, split in (("train", "train"), ("train_full", "train"), ("val", "val")):
        full_name = f"shapes_{name}"
        if full_name not in DatasetCatalog:
            register_coco_format(
                full_name,
                os.path.join(root, "annotations", f"{name}.json"),
                os.path.join(root, split),
                thing_classes=list(SHAPE_CLASSES),
            )


# -- reading --------------------------------------------------------------------------------------


def annotations_of(dataset_name: str) -> Optional[Annotations]:
    """
    Args:
        dataset_name: a registered dataset.

    Returns:
        Annotations or None: what its annotation file holds, read once in this process; None for a
        dataset that :func:`register_coco_format` did not register.
    """
    if dataset_name in DatasetCatalog:
        DatasetCatalog.get(dataset_name)
    known = _read.get(dataset_name)
    return known[1] if known else None


def keep_annotations(dataset_name: str, annotations: Annotations, options: ReadingOptions) -> None:
    """Spare a dataset of :func:`register_coco_format` the reading of its file.

    Args:
        dataset_name: any dataset; others stay as they are.
        annotations: what has been read from its file, without errors.
        options: with which that was read.
    """
    if _options.get(dataset_name) != options:
        return
    annotations.report.stop_at_errors = True  # from now on
    _read[dataset_name] = _identity(dataset_name), annotations
    metadata = MetadataCatalog.get(dataset_name)
    for key in ("thing_classes", "thing_dataset_id_to_contiguous_id", "mask_counts"):
        metadata.__dict__.pop(key, None)  # a value that is set cannot be changed


def is_in_memory(dataset_name: str) -> bool:
    """Whether what :func:`annotations_of` gives is there already."""
    return dataset_name in _read


def forget_annotations() -> None:
    """Free the memory of all files that were read; they are read again when they are needed."""
    _read.clear()


def _read_registered(name: str) -> Annotations:
    metadata = MetadataCatalog.get(name)
    path = metadata.json_file
    if name.startswith("shapes_") and not os.path.isfile(path):
        raise FileNotFoundError(
            f"There is no {path}: write the built-in data with 'python "
            "tools/prepare_shapes.py' (it uses the environment variable DETECTRON2_DATASETS, if "
            "that is set, as the dataset does)"
        )
    identity = _identity(name)
    if _read.get(name, (None,))[0] != identity:
        # Perhaps under another name.
        annotations = next((x for known, x in _read.values() if known == identity), None)
        if annotations is None:
            annotations = read_annotations(path, metadata.image_root, options=_options[name])
            log_reading(annotations)
        keep_annotations(name, annotations, _options[name])
    _, annotations = _read[name]
    metadata.thing_classes = annotations.class_names
    metadata.thing_dataset_id_to_contiguous_id = {
        category_id: i for i, category_id in enumerate(annotations.category_ids)
    }
    return annotations


def _identity(name: str) -> tuple:
    """What the content of a dataset depends on."""
    metadata = MetadataCatalog.get(name)
    path = metadata.json_file
    stat = os.stat(path) if os.path.isfile(path) else None
    return path, metadata.image_root, _options[name], stat and (stat.st_size, stat.st_mtime_ns)


# -- classes --------------------------------------------------------------------------------------


def class_names_of(dataset_name: str) -> Tuple[str, ...]:
    """Class names of a registered dataset by contiguous id; reads it if it has not told them.

    Raises:
        ValueError: for an unknown dataset, or one without class names.
    """
    if dataset_name not in DatasetCatalog:
        close = difflib.get_close_matches(dataset_name, DatasetCatalog.list(), n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(
            f"DATASETS.TRAIN, DATASETS.TEST: unknown dataset '{dataset_name}'; {hint}Your own have "
            "their names from DATASETS.COCO_FORMAT"
        )
    metadata = MetadataCatalog.get(dataset_name)
    if not hasattr(metadata, "thing_classes"):
        DatasetCatalog.get(dataset_name)  # COCO-format datasets learn their classes when read
    names = metadata.get("thing_classes")
    if names is None:
        raise ValueError(
            f"Dataset '{dataset_name}' has no 'thing_classes' in its metadata: ContrastMask needs "
            "the class names"
        )
    return tuple(names)


def model_class_names(cfg) -> Tuple[str, ...]:
    """The classes of the model, by their id in it.

    Args:
        cfg (CfgNode): ``DATASETS.CLASS_NAMES``, or else the classes of ``DATASETS.TRAIN``: those of
            the first dataset, then those that only later ones have.

    Raises:
        ValueError: if there is neither.
    """
    if cfg.DATASETS.CLASS_NAMES:
        return tuple(cfg.DATASETS.CLASS_NAMES)
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN names no dataset")
    names = [name for dataset in cfg.DATASETS.TRAIN for name in class_names_of(dataset)]
    return tuple(dict.fromkeys(names))


def set_num_classes(cfg) -> None:
    """
    Args:
        cfg (CfgNode): not frozen. ``MODEL.ROI_HEADS.NUM_CLASSES`` 0 becomes the number of the
            model's classes.
    """
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES == 0:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(model_class_names(cfg))


def to_model_classes(
    records: List[dict], dataset_names: Sequence[str], model_names: Sequence[str]
) -> List[dict]:
    """Classes are matched by name.

    Args:
        records: in Detectron2's dataset format, with the class ids of their dataset.
        dataset_names: class names of the dataset by contiguous id.
        model_names: class names of the model.

    Returns:
        list[dict]: the same images with the class ids of the model. Annotations of classes that the
        model does not have are left out. The records themselves are not changed.
    """
    if list(dataset_names) == list(model_names)[: len(dataset_names)]:
        return records
    known = {name: i for i, name in enumerate(model_names)}
    ids = [known.get(name) for name in dataset_names]
    return [
        {
            **record,
            "annotations": [
                {**x, "category_id": ids[x["category_id"]]}
                for x in record["annotations"]
                if ids[x["category_id"]] is not None
            ],
        }
        if "annotations" in record
        else record
        for record in records
    ]


def training_records(cfg) -> List[dict]:
    """
    Args:
        cfg (CfgNode): ``DATASETS.TRAIN`` and ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` are used.

    Returns:
        list[dict]: the images to train on, in Detectron2's format, with the class ids of the model.

    Raises:
        ValueError: if there is none.
    """
    model_names, records = model_class_names(cfg), []
    for name in cfg.DATASETS.TRAIN:
        records += to_model_classes(DatasetCatalog.get(name), class_names_of(name), model_names)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    if not records:
        raise ValueError(
            f"DATASETS.TRAIN: {' and '.join(map(describe, cfg.DATASETS.TRAIN))} have no image with "
            "an annotation"
        )
    return records


def test_records(cfg, dataset_name: str) -> List[dict]:
    """
    Args:
        cfg (CfgNode):
        dataset_name: a registered dataset.

    Returns:
        list[dict]: its images in Detectron2's format, with the class ids of the model.
    """
    records = DatasetCatalog.get(dataset_name)
    return to_model_classes(records, class_names_of(dataset_name), model_class_names(cfg))


def describe(dataset_name: str) -> str:
    """A dataset in messages: its name, and its annotation file."""
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    # tools/inspect_dataset.py has no other name than the path.
    has_path = json_file not in (None, dataset_name)
    return f"'{dataset_name}' ({json_file})" if has_path else f"'{dataset_name}'"


register_shapes(shapes_root())
