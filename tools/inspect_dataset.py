#!/usr/bin/env python
"""
Look over training data: a table of its classes, all problems, and a picture with samples.

    python tools/inspect_dataset.py --config-file configs/quickstart.yaml
    python tools/inspect_dataset.py --json boxes_and_masks.json --images folder --base-classes auto

Exit code 0: training could start. 1: it could not; the reasons are printed.
"""

import argparse
import os
import sys

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger

from contrastmask import add_contrastmask_config
from contrastmask.data import (
    check_num_classes,
    check_supervision,
    register_datasets,
    resolve_class_split,
)
from contrastmask.data.inspection import inspect_annotation_file
from contrastmask.data.inspection_tables import (
    format_classes,
    format_problems,
)
from contrastmask.engine import load_config
from contrastmask.visualization.class_samples import write_class_samples


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", help="inspect its DATASETS.TRAIN")
    parser.add_argument("--json", help="annotation file in COCO format, instead of a config file")
    parser.add_argument("--images", help="folder of its images")
    parser.add_argument(
        "--base-classes", nargs="+", help="with --json: as DATASETS.BASE_CLASSES (default: auto)"
    )
    parser.add_argument(
        "--output",
        default="output/inspect_dataset.png",
        help="PNG with samples (default: %(default)s)",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    args = parser.parse_args(argv)
    if (args.config_file is None) == (args.json is None):
        parser.error("give either --config-file, or --json and --images")
    if (args.json is None) != (args.images is None):
        parser.error("--json and --images belong together")
    if args.json is None and args.base_classes:
        parser.error("with --config-file, give DATASETS.BASE_CLASSES instead of --base-classes")
    if args.json is not None and args.opts:
        parser.error(f"overrides need --config-file: {' '.join(args.opts)}")
    return args


def main(argv=None):
    args = parse_args(argv)
    setup_logger(name="contrastmask")
    try:
        reasons = inspect(args)
    except (ValueError, OSError, ImportError) as error:
        reasons = [str(error)]
    if reasons:
        print("\nTraining cannot start:")
        for reason in reasons:
            print(f"- {reason}")
        return 1
    print("\nTraining can start.")
    return 0


def inspect(args):
    """
    Print and draw what is in the data.

    Returns:
        list[str]: why training cannot start, if that is in the data.

    Raises:
        ValueError, OSError: why training cannot start, if that is in the config.
        ImportError: for a dataset of Detectron2 that needs a package which is not installed.
    """
    if args.config_file:
        cfg = load_config(args.config_file, args.opts)
    else:
        cfg = _config_of_file(args)
    reasons, inspections = [], {}
    for name in cfg.DATASETS.TRAIN:
        metadata = MetadataCatalog.get(name)
        json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
        if not json_file:
            reasons.append(f"Dataset '{name}' has no annotation file that could be inspected")
            continue
        print(f"Inspecting {json_file} with images in {image_root}")
        inspections[name] = inspect_annotation_file(json_file, image_root)
        errors = inspections[name].errors
        reasons += [f"{json_file}: {p.what}: {p.examples()}" for p in errors]

    masked_classes = {
        class_name
        for inspection in inspections.values()
        for class_name, numbers in zip(inspection.class_names, inspection.statistics)
        if numbers.num_masks
    }
    for name, inspection in inspections.items():
        split = None
        if inspection.class_names:
            try:
                split = resolve_class_split(
                    inspection.class_names,
                    cfg.DATASETS.BASE_CLASSES,
                    cfg.DATASETS.NOVEL_CLASSES,
                    masked_classes=masked_classes,
                    needs_base=cfg.MODEL.MASK_ON,
                )
            except ValueError as error:
                reasons.append(str(error))
        print(f"\n{name}\n{format_classes(inspection, split)}\n\n{format_problems(inspection)}")
        path = args.output
        if len(inspections) > 1:
            path = f"_{name}".join(os.path.splitext(path))
        try:
            if split is not None and write_class_samples(path, inspection.records, split):
                print(f"\nSamples of each class: {path}")
        except OSError as error:
            print(f"\nThe picture with samples cannot be written: {error}")

    if not reasons:  # what train_net.py checks before it starts, for data that is sound in itself
        if args.config_file:
            check_num_classes(cfg)
        check_supervision(cfg)
    return reasons


def _config_of_file(args):
    """A config for data without one; it takes masks of any kind."""
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    # Names that Detectron2 gives to datasets are no absolute paths.
    name = os.path.abspath(os.path.expanduser(args.json))
    cfg.DATASETS.COCO_FORMAT = [[name, args.json, args.images]]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    cfg.DATASETS.BASE_CLASSES = args.base_classes or ["auto"]
    register_datasets(cfg)
    return cfg


if __name__ == "__main__":
    sys.exit(main())
