#!/usr/bin/env python
"""
Look over data before training: a table of its classes, all problems, and a picture with samples.

    python tools/inspect_dataset.py --json train.json --images folder
    python tools/inspect_dataset.py --config-file configs/quickstart.yaml

With a config file the data in DATASETS.TRAIN and DATASETS.TEST is looked over.

    python tools/inspect_dataset.py --json train.json --images folder --write-config my_data.yaml

also writes a config that trains on the data, with settings that follow from it and from the device.

Exit code 0: training could start. 1: it could not; the reasons are printed.
"""

import argparse
import dataclasses
import logging
import os
import shlex
import sys

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

from contrastmask.config import default_config, merge_overrides, value_of
from contrastmask.config_writing import write_config
from contrastmask.data import (
    check_all,
    class_split_from_config,
    register_datasets,
    resolve_class_split,
    set_num_classes,
    to_model_classes,
)
from contrastmask.data.datasets import forget_annotations, keep_annotations, reading_options
from contrastmask.data.images import ImageReader
from contrastmask.data.inspection import inspect_annotation_file
from contrastmask.data.reading_report import WHOLE_FILE, names
from contrastmask.data.validation_split import choose_validation_images, write_split
from contrastmask.engine import load_config
from contrastmask.engine.programs import parse_args, program
from contrastmask.planning import Choice, Device, TrainingData, plan
from contrastmask.visualization.class_samples import write_class_samples

# Of the images, for validation, where no file is given for it.
FRACTION, SEED = 0.2, 0


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
    parser.add_argument(
        "--write-config",
        metavar="FILE",
        help="with --json: write a config for this data. Without --val-json a fifth of the images "
        "is split off for validation, into annotation files beside the config",
    )
    parser.add_argument("--device", help="with --write-config: that trains (default: a GPU if any)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    args = parse_args(parser, argv)
    args.command = shlex.join(sys.argv[1:] if argv is None else argv)
    if (args.config_file is None) == (args.json is None):
        parser.error("give either --config-file, or --json and --images")
    if (args.json is None) != (args.images is None):
        parser.error("--json and --images belong together")
    if (args.val_json is None) != (args.val_images is None):
        parser.error("--val-json and --val-images belong together")
    if args.json is None and (args.base_classes or args.val_json):
        parser.error("--base-classes and --val-json belong to --json; a config has keys for these")
    if args.write_config and args.json is None:
        parser.error("--write-config needs --json and --images")
    if args.write_config is None and (args.device or args.overwrite):
        parser.error("--device and --overwrite belong to --write-config")
    return args


@program
def main(argv=None):
    args = get_args(argv)
    setup_logger(name="contrastmask")
    logging.getLogger("contrastmask.data.coco_format").disabled = True  # it is all printed here
    reasons = []
    if args.write_config:
        check_outputs(args)
        device = Device.find(args.device or "")
    try:
        cfg = load_config(args.config_file, args.opts) if args.config_file else config_of(args)
        inspections, reasons = inspect(cfg, args.output)
        if (
            args.write_config
            and not reasons
            and not has_any_mask(inspections[cfg.DATASETS.TRAIN[0]])
        ):
            cfg.MODEL.MASK_ON = False
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
    if args.write_config:
        write_settings(args, cfg, inspections, device)
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
        dict[str, Inspection]: of each dataset by its name.
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
        options = reading_options(cfg)
        inspections[name] = inspect_annotation_file(
            json_file, image_root, options, ImageReader.from_config(cfg)
        )
        errors = inspections[name].report.errors
        if not errors:  # what training would read
            keep_annotations(name, inspections[name].annotations, options)
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
    return inspections, reasons


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


def has_any_mask(inspection):
    """Whether an annotation has a mask, be it a crowd, whose masks may be drawn objects."""
    return any("segmentation" in x for r in inspection.records for x in r["annotations"])


def split_paths(args):
    """Annotation files that --write-config may have to write."""
    stem = os.path.splitext(os.path.abspath(args.write_config))[0]
    return [] if args.val_json else [f"{stem}_train.json", f"{stem}_val.json"]


def check_outputs(args):
    inputs = [os.path.realpath(x) for x in (args.json, args.val_json) if x]
    for path in [args.write_config, *split_paths(args)]:
        if os.path.realpath(path) in inputs:
            raise ValueError(f"{path} is the annotation file itself: choose another --write-config")
        if os.path.exists(path) and not args.overwrite:
            raise ValueError(f"{path} exists: choose another --write-config, or give --overwrite")


def write_settings(args, cfg, inspections, device):
    """Write what --write-config asks for, check it as train_net.py does, and print what is next."""
    path, stem = args.write_config, os.path.splitext(os.path.basename(args.write_config))[0]
    inspection = inspections[cfg.DATASETS.TRAIN[0]]
    split = class_split_from_config(cfg)
    files = {"train": (args.json, args.images)}
    about_validation = "Given."
    if args.val_json:
        files["val"] = (args.val_json, args.val_images)
    else:
        chosen = choose_validation_images(inspection.records, FRACTION, SEED)
        about_validation = describe_split(inspection, chosen, split)
        print(f"\n{about_validation}")
        if chosen:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            train_path, val_path = split_paths(args)
            write_split(inspection.content, chosen, train_path, val_path)
            print(f"Wrote {train_path} and {val_path}")
            files = {"train": (train_path, args.images), "val": (val_path, args.images)}
            kept = [x for x in inspection.records if x["image_id"] not in chosen]
            inspection = dataclasses.replace(inspection, records=kept)
    name = stem if f"{stem}_train" not in DatasetCatalog else f"my_{stem}"
    entries = [
        [f"{name}_{part}", *(os.path.abspath(os.path.expanduser(x)) for x in paths)]
        for part, paths in files.items()
    ]
    choices = [
        Choice("DATASETS.COCO_FORMAT", entries, "Name, annotation file, folder of the images."),
        Choice("DATASETS.TRAIN", [entries[0][0]], "To learn from."),
        Choice("DATASETS.TEST", [x[0] for x in entries[1:]], about_validation),
        Choice("TEST.REPORT", True, "A page with tables, curves and examples."),
        Choice("OUTPUT_DIR", f"output/{stem}", "Checkpoints, logs and results."),
    ]
    given = args.opts[::2] + ["DATASETS.BASE_CLASSES"] * bool(args.base_classes)
    choices += [Choice(x, value_of(cfg, x), "Given on the command line.") for x in given]
    base_names = [split.class_names[i] for i in split.base]
    settings = plan(TrainingData.from_inspection(inspection, base_names), device, choices)
    header = [
        f"Settings for {stem}, from its data and the device that trains. Written by",
        f"python tools/inspect_dataset.py {args.command}",
    ]
    write_config(path, settings, header)
    inspections.clear()
    del inspection
    if files["train"][0] != args.json:  # room for the files that were written
        forget_annotations()
    written = load_config(path)
    check_all(written)
    quoted = shlex.quote(path)
    weights = shlex.quote(os.path.join(written.OUTPUT_DIR, "model_final.pth"))
    data = f"--json {shlex.quote(args.json)} --images {shlex.quote(args.images)}"
    output = shlex.quote(os.path.join(written.OUTPUT_DIR, "with_masks.json"))
    predict = f"python tools/predict_masks.py --weights {weights} {data} --output {output}"
    if not written.MODEL.MASK_ON:
        output = shlex.quote(os.path.join(written.OUTPUT_DIR, "demo"))
        images = shlex.quote(args.images)
        predict = f"python demo/demo.py --weights {weights} --input {images} --output {output}"
    print(f"\nWrote {path}. Next:\n\n    python train_net.py --config-file {quoted}\n    {predict}")


def describe_split(inspection, chosen, split):
    """In a sentence or two: the validation images, and what they cannot measure."""
    if not chosen:
        return (
            "No validation: no image can be split off without taking the only one of a class. Give "
            "--val-json, or train without evaluation."
        )
    parts = [
        {
            inspection.class_names[x["category_id"]]
            for r in inspection.records
            if (r["image_id"] in chosen) == is_val
            for x in r["annotations"]
            if not x["iscrowd"]
        }
        for is_val in (False, True)
    ]
    text = (
        f"{len(chosen)} of {len(inspection.records)} images split off for validation, seed {SEED}."
    )
    missing = [x for x in split.class_names if x in parts[0] and x not in parts[1]]
    if missing:
        text += f" None of these classes is there, for lack of images: {names(missing)}."
    if split.base and split.novel:
        text += (
            " Masks of novel classes cannot be evaluated, as their file has none: only boxes can."
        )
    return text


if __name__ == "__main__":
    sys.exit(main())
