#!/usr/bin/env python
"""
Write a checkpoint of another layout (the authors' MMDetection layout, torchvision's ResNet and
ResNeXt, EfficientNet-Lite) under the names of this project's Detectron2 model:

    python tools/convert_checkpoint.py official.pth converted.pth --config-file configs/...yaml

With a config, the file is checked against the model, and that of a detector then holds config and
class names, so that it is all that demo, tools and evaluation need. The class names come from
Detectron2 for COCO, from the data in DATASETS.TRAIN for others, or from DATASETS.CLASS_NAMES.

MODEL.WEIGHTS takes all of these layouts as they are. Only files with Python objects beside their
tensors, as MMDetection 3 writes them, have to be converted, which leaves the objects out.
"""

import argparse
import logging
import os
import sys

import torch
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from contrastmask.atomic_files import write_whole
from contrastmask.checkpoint import (
    DESCRIPTION_KEY,
    ContrastMaskCheckpointer,
    Description,
    model_class_split,
    model_config,
    read_tensors,
    read_weights,
)
from contrastmask.config import use_available_device
from contrastmask.engine.programs import parse_args, program

logger = logging.getLogger("contrastmask.convert_checkpoint")


def get_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", help="checkpoint to read, a file or torchvision://<model>")
    parser.add_argument("dst", help="file to write, ending in .pth")
    parser.add_argument("--config-file", help="config of the model that it is for")
    args = parse_args(parser, argv)
    if not args.dst.endswith(".pth"):
        parser.error(f"DST has to end in .pth, not {args.dst}")
    if args.opts and not args.config_file:
        parser.error(f"overrides need --config-file: {' '.join(args.opts)}")
    return args


@program
def main(argv=None):
    args = get_args(argv)
    for name in ("contrastmask", "fvcore"):
        setup_logger(name=name)
    src = PathManager.get_local_path(args.src)
    if os.path.exists(args.dst) and os.path.samefile(src, args.dst):
        raise ValueError(f"{args.src} and {args.dst} are the same file")
    checkpoint, layout = read_weights(src)
    logger.info(f"{args.src} has the layout {layout.name if layout else 'Detectron2'}")
    is_detector = any(name.startswith("roi_heads.") for name in checkpoint["model"])

    description = None
    if args.config_file:
        cfg = model_config(args.config_file, args.opts, src, read_tensors)
        use_available_device(cfg)
        model = build_model(cfg)
        ContrastMaskCheckpointer(model, require_all=is_detector, read=read_tensors).load(src)
        logger.info(f"{args.src} fits the model of {args.config_file}")
        if is_detector:
            description = Description.of(cfg, model_class_split(cfg))
    else:
        description = Description.read(src, read_tensors)
    if description is not None:
        checkpoint[DESCRIPTION_KEY] = description.state_dict()

    with write_whole(args.dst, "wb") as f:
        torch.save(checkpoint, f)
    logger.info(f"Wrote {args.dst}: {len(checkpoint['model'])} tensors")


if __name__ == "__main__":
    sys.exit(main())
