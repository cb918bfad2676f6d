#!/usr/bin/env python
"""
Look over data before training: a table of its classes, all problems, and a picture with samples.

    python tools/inspect_dataset.py --json train.json --images folder
    python tools/inspect_dataset.py --config-file configs/quickstart.yaml

With a config file the data in DATASETS.TRAIN and DATASETS.TEST is looked over.

Exit code 0: training could start. 1: it could not; the reasons are printed.
"""

import argparse
import logging
import os
import sys

from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger

from contrastmask.config import default_config, merge_overrides
from contrastmask.data import (
    check_all,
    register_datasets,
    resolve_class_split,
    set_num_classes,
    to_model_classes,
)
from contrastmask.data.datasets import reading_options
from contrastmask.data.images import ImageReader
from contrastmask.data.inspection import inspect_annotation_file
from contrastmask.data.reading_report import WHOLE_FILE
from contrastmask.engine import load_config
from contrastmask.engine.programs import parse_args, program
from contrastmask.visualization.class_samples import write_class_samples


def get_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", help="inspect its DATASETS.TRAIN and DATASETS.TEST")
    parser.add_argument("--json", help="annotation file in COCO format, instead of a config file")
    parser.add_argument("--images", help="folder of its images")
    parser.add_argument("--val-json", help="annotation file for validation")
    parser.add_argument("--val-images", help="folder of its images")
    parser.add_argument(
        "--base-classes", nargs="+", help="with --json: as DATASETS.BASE_CLASSES (default: auto)"
    )
    parser.add_argument(
        "--output",
        default="output/inspect_dataset.png",
        help="PNG with samples (default: %(default)s)",
    )
    args = parse_args(parser, argv)
    if (args.config_file is None) == (args.json is None):
        parser.error("give either --config-file, or --json and --images")
    if (args.json is None) != (args.images is None):
        parser.error("--json and --images belong together")
    if (args.val_json is None) != (args.val_images is None):
        parser.error("--val-json and --val-images belong together")
    if args.json is None and (args.base_classes or args.val_json):
        parser.error("--base-classes and --val-json belong to --json; a config has keys for these")
    return args


@program
def main(argv=None):
    args = get_args(argv)
    setup_logger(name="contrastmask")
    logging.getLogger("contrastmask.data.coco_format").disabled = True  # it is all printed here
    reasons = []
    try:
        cfg = load_config(args.config_file, args.opts) if args.config_file else config_of(args)
        reasons = inspect(cfg, args.output)
        if not reasons:  # what train_net.py checks before it starts
            if not cfg.is_frozen():
                set_num_classes(cfg)
            check_all(cfg)
    except (ValueError, OSError, ImportError) as error:
        reasons.append(str(error))
    if reasons:
        print("\nTraining cannot start:")
        for reason in dict.fromkeys(reasons):
            print(f"- {reason}")
        return 1
    print("\nTraining can start.")
    return 0


def config_of(args):
    """A config for data without one; it takes masks of any kind."""
    cfg = default_config()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    files = [(args.json, args.images)] + [(args.val_json, args.val_images)] * bool(args.val_json)
    # Names that Detectron2 gives to datasets are no absolute paths.
    names = [os.path.abspath(os.path.expanduser(json_file)) for json_file, _ in files]
    cfg.DATASETS.COCO_FORMAT = [[name, *paths] for name, paths in zip(names, files)]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names[0],), tuple(names[1:])
    cfg.DATASETS.BASE_CLASSES = args.base_classes or ["auto"]
    merge_overrides(cfg, args.opts)
    register_datasets(cfg)
    return cfg


def inspect(cfg, picture):
    """
    Print and draw what is in the data.

    Args:
        cfg (CfgNode):
        picture (str): PNG with samples to write; several datasets get one each.

    Returns:
        list[str]: why training cannot start.
    """
    reasons, inspections = [], {}
    names = dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    for name in names:
        metadata = MetadataCatalog.get(name)
        json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
        if not json_file:
            print(f"Dataset '{name}' has no annotation file that could be inspected")
            continue
        print(f"Inspecting {json_file} with images in {image_root}")
        inspections[name] = inspect_annotation_file(
            json_file, image_root, reading_options(cfg), ImageReader.from_config(cfg)
        )
        errors = inspections[name].report.errors
        for x in errors:
            where = "" if x.where == [WHOLE_FILE] else f": {x.examples()}"
            reasons.append(f"{json_file}: {x.what}{where}")
    split = split_of(cfg, inspections)
    for name, inspection in inspections.items():
        print(f"\n{name}\n{inspection.table_of_classes(split)}\n\n{inspection.table_of_findings()}")
        path = picture
        if len(inspections) > 1:
            stem = os.path.splitext(os.path.basename(name))[0]
            path = f"_{stem}".join(os.path.splitext(picture))
        draw(path, inspection, split, ImageReader.from_config(cfg, format="RGB"))
    return reasons


def split_of(cfg, inspections):
    """The split that the config makes of the classes; None if it makes none."""
    training = [inspections[name] for name in cfg.DATASETS.TRAIN if name in inspections]
    names = dict.fromkeys(name for x in training for name in x.class_names)
    masked = [
        name
        for x in training
        for name, numbers in zip(x.class_names, x.statistics)
        if numbers.num_masks
    ]
    try:
        return resolve_class_split(
            cfg.DATASETS.CLASS_NAMES or tuple(names),
            cfg.DATASETS.BASE_CLASSES,
            cfg.DATASETS.NOVEL_CLASSES,
            masked_classes=masked,
            needs_base=False,
        )
    except ValueError:
        return None  # the checks before training say why


def draw(path, inspection, split, reader):
    """Draw samples of each class. Whatever goes wrong here is no problem of the data."""
    if split is None:
        return
    records = to_model_classes(inspection.records, inspection.class_names, split.class_names)
    try:
        if write_class_samples(path, records, split, reader):
            print(f"\nSamples of each class: {path}")
    except Exception as error:
        print(f"\nThe picture with samples cannot be drawn: {error}")


if __name__ == "__main__":
    sys.exit(main())
