#!/usr/bin/env python
"""
Write a trained model as files that need neither this project nor Detectron2:

    python tools/export_model.py --weights output/quickstart/model_final.pth --format onnx \\
        --output output/quickstart/onnx

DIR gets detector.onnx (an image to boxes, scores, classes, masks and CAMs), box_masks.onnx (an
image and boxes with classes to masks and CAMs) and model.json, which says how to prepare images
and what goes in and comes out. docs/EXPORT.md explains them, demo/onnx_demo.py uses them.
"""

import argparse
import logging
import sys

from detectron2.utils.logger import setup_logger

from contrastmask.engine.programs import (
    add_model_arguments,
    build_predictor,
    parse_args,
    program,
)
from contrastmask.export import FORMATS, export_model


def get_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write to")
    return parse_args(parser, argv)


@program
def main(argv=None):
    args = get_args(argv)
    setup_logger(name="contrastmask")
    logger = logging.getLogger("contrastmask.export_model")
    for path in export_model(build_predictor(args), args.output, args.format):
        logger.info(f"Wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
