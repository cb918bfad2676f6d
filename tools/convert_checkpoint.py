#!/usr/bin/env python
"""
Write a checkpoint of another layout (the authors' MMDetection layout, torchvision's ResNet and
ResNeXt, EfficientNet-Lite) under the names of this project's Detectron2 model:

    python tools/convert_checkpoint.py official.pth converted.pth --config-file configs/...yaml

MODEL.WEIGHTS takes all of these layouts as they are. Only files with Python objects beside their
tensors, as MMDetection 3 writes them, have to be converted, which leaves the objects out.
"""

import argparse
import logging
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from detectron2.modeling import build_model  # noqa: E402
from detectron2.utils.file_io import PathManager  # noqa: E402
from detectron2.utils.logger import setup_logger  # noqa: E402

from contrastmask.atomic_files import write_whole  # noqa: E402
from contrastmask.checkpoint import (  # noqa: E402
    ContrastMaskCheckpointer,
    read_tensors,
    read_weights,
)
from contrastmask.engine import load_config  # noqa: E402

logger = logging.getLogger("contrastmask.convert_checkpoint")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", help="checkpoint to read, a file or torchvision://<model>")
    parser.add_argument("dst", help="file to write, ending in .pth")
    parser.add_argument("--config-file", help="first check that it fits the model of this config")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides of the config"
    )
    args = parser.parse_args(argv)
    if not args.dst.endswith(".pth"):
        parser.error(f"DST has to end in .pth, not {args.dst}")
    if args.opts and not args.config_file:
        parser.error("--opts needs --config-file")
    return args


def main(argv=None):
    args = parse_args(argv)
    for name in ("contrastmask", "fvcore"):
        setup_logger(name=name)
    src = PathManager.get_local_path(args.src)
    if os.path.exists(args.dst) and os.path.samefile(src, args.dst):
        raise SystemExit(f"{args.src} and {args.dst} are the same file")
    checkpoint, layout = read_weights(src)
    logger.info(f"{args.src} has the layout {layout.name if layout else 'Detectron2'}")

    if args.config_file:
        model = build_model(load_config(args.config_file, args.opts))
        is_detector = any(name.startswith("roi_heads.") for name in checkpoint["model"])
        ContrastMaskCheckpointer(model, require_all=is_detector, read=read_tensors).load(src)
        logger.info(f"{args.src} fits the model of {args.config_file}")

    with write_whole(args.dst, "wb") as f:
        torch.save(checkpoint, f)
    logger.info(f"Wrote {args.dst}: {len(checkpoint['model'])} tensors")


if __name__ == "__main__":
    main()
