#!/usr/bin/env python
"""
Write a checkpoint of another layout (the authors' MMDetection layout, torchvision's ResNet and
ResNeXt, EfficientNet-Lite) under the names of this project's Detectron2 model:

    python tools/convert_checkpoint.py official.pth converted.pth --config-file configs/...yaml

Converting is optional: MODEL.WEIGHTS takes all of these layouts as they are.
"""

import argparse
import logging
import os

import torch
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from contrastmask.atomic_files import write_whole
from contrastmask.checkpoint import ContrastMaskCheckpointer, read_weights
from contrastmask.engine import load_config

logger = logging.getLogger("contrastmask.convert_checkpoint")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", help="checkpoint to read, a file or torchvision://<model>")
    parser.add_argument("dst", help="file to write, ending in .pth")
    parser.add_argument("--config-file", help="first check that it fits the model of this config")
    parser.add_argument(
        "--trust-source",
        action="store_true",
        help="also read a file that holds Python objects; this can run code hidden in it",
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides of the config"
    )
    args = parser.parse_args(argv)
    if not args.dst.endswith(".pth"):
        parser.error(f"DST has to end in .pth, not {args.dst}")
    if args.opts and not args.config_file:
        parser.error("--opts needs --config-file")
    if args.config_file and args.trust_source:
        parser.error("check the converted file against a config in a second run")
    return args


def main(argv=None):
    args = parse_args(argv)
    for name in ("contrastmask", "fvcore"):
        setup_logger(name=name)
    src = PathManager.get_local_path(args.src)
    if os.path.exists(args.dst) and os.path.samefile(src, args.dst):
        raise SystemExit(f"{args.src} and {args.dst} are the same file")
    checkpoint, layout = read_weights(src, trusted=args.trust_source)
    logger.info(f"{args.src} has the layout {layout.name if layout else 'Detectron2'}")

    if args.config_file:
        model = build_model(load_config(args.config_file, args.opts))
        is_detector = any(name.startswith("roi_heads.") for name in checkpoint["model"])
        ContrastMaskCheckpointer(model, require_all=is_detector).load(src)
        logger.info(f"{args.src} fits the model of {args.config_file}")

    with write_whole(args.dst, "wb") as f:
        torch.save(checkpoint, f)
    logger.info(f"Wrote {args.dst}: {len(checkpoint['model'])} tensors")


if __name__ == "__main__":
    main()
