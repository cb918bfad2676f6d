#!/usr/bin/env python
"""
Write a trained model as files that need neither this project nor Detectron2:

    python tools/export_model.py --weights output/quickstart/model_final.pth --format onnx \\
        --output output/quickstart/onnx

DIR gets detector.onnx (an image to boxes, scores, classes, masks and CAMs), box_masks.onnx (an
image and boxes with classes to masks and CAMs) and model.json, which says how to prepare images
and what goes in and comes out. docs/EXPORT.md explains them, demo/onnx_demo.py uses them.
--compare IMAGE also runs the detector beside PyTorch, and prints differences and processor time.
"""

import argparse
import logging
import os
import sys
import time
import warnings

import numpy as np
import torch
from detectron2.utils.logger import setup_logger

from contrastmask.engine.programs import (
    add_model_arguments,
    build_predictor,
    parse_args,
    program,
)
from contrastmask.export import FORMATS, export_model
from contrastmask.predictor import ModelInput, Predictor, to_rgb

_REPEATS = 7


def get_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--compare", metavar="IMAGE", help="run the detector beside PyTorch on it")
    args = parse_args(parser, argv)
    if args.compare and not os.path.isfile(args.compare):
        parser.error(f"--compare: there is no file {args.compare}")
    return args


@torch.no_grad()
def compare(predictor: Predictor, path: str, image: str) -> str:
    """
    Args:
        predictor: on the CPU for ONNX.
        path: of a detector that was exported from it.
        image: path of an image.

    Returns:
        A line with the largest differences, and the median ratio of processor time, run in turn
        with the same number of threads. PyTorch does not paste masks here.
    """
    x = ModelInput(predictor.cfg)(to_rgb(image, predictor.read_image))["image"]
    if path.endswith(".onnx"):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "--compare needs onnxruntime: pip install onnxruntime. The files are written"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

        def run():
            return session.run(None, {"image": x.numpy()})
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, about TorchScript
            module = torch.jit.load(path)

        def run():
            return [y.cpu().numpy() for y in module(x.to(predictor.cfg.MODEL.DEVICE))]

    seconds = []
    for _ in range(_REPEATS + 2):  # the first two are slower
        begin = time.process_time()
        (expected,) = predictor.model.inference([{"image": x}], do_postprocess=False)
        middle = time.process_time()
        boxes, scores, classes, *_ = run()
        seconds.append((middle - begin, time.process_time() - middle))
    if not np.array_equal(classes, expected.pred_classes.cpu()):
        return f"{path} and PyTorch find other objects in {image}: {len(scores)}, {len(expected)}"
    differences = [
        np.abs(found - wanted.cpu().numpy()).max(initial=0)
        for found, wanted in ((boxes, expected.pred_boxes.tensor), (scores, expected.scores))
    ]
    pytorch, exported = np.array(seconds[2:]).T
    return (
        f"{len(scores)} objects in {tuple(x.shape[1:])} pixels; largest difference of boxes "
        f"{differences[0]:.1e} pixels, of scores {differences[1]:.1e}; processor time "
        f"{np.median(exported / pytorch):.2f} times PyTorch's ({np.median(pytorch):.2f} s)"
    )


@program
def main(argv=None):
    args = get_args(argv)
    setup_logger(name="contrastmask")
    logger = logging.getLogger("contrastmask.export_model")
    predictor = build_predictor(args)
    paths = export_model(predictor, args.output, args.format)
    for path in paths:
        logger.info(f"Wrote {path}")
    if args.compare:
        logger.info(compare(predictor, paths[0], args.compare))


if __name__ == "__main__":
    sys.exit(main())
