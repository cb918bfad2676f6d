#!/usr/bin/env python
"""
Give every box-only annotation of a COCO-format file a mask, predicted for exactly that box and
class. Annotations that have a segmentation, and all other values in the file, stay as they are; but
polygons also set "area" and "bbox" to those of the polygons ("given_bbox" keeps the box), and RLEs
that the file had become polygons, too, which are the same to the pixel.

    python tools/predict_masks.py --weights output/quickstart/model_final.pth \\
        --json boxes.json --images folder --output boxes_with_masks.json

Several GPUs, or several processes without any, share the images: --num-gpus 8, or torchrun or srun
as for train_net.py. The output is the same.

An interrupted run goes on where it was if the same command is given again, also with another number
of processes.

Exit code 0: done. 1: failed, the reason is printed and no output is written. 3: done, but some
images could not be read and were skipped. 4: done, but the comparison failed. 130: interrupted.
With torchrun or srun this is the exit code of the first process.
"""

import argparse
import logging
import os
import sys

import torch.multiprocessing as mp
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from contrastmask.engine import launch
from contrastmask.engine.launching import share_cores
from contrastmask.engine.programs import (
    add_model_arguments,
    build_predictor,
    parse_args,
    program,
    user_errors,
)
from contrastmask.inference import complete_masks, read_masks
from contrastmask.inference.complete_masks import MASK_FORMATS

_EXIT_SKIPPED = 3
_EXIT_NOT_COMPARED = 4


def get_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--json", required=True, help="annotation file in COCO format")
    parser.add_argument("--images", required=True, help="folder of its images")
    parser.add_argument("--output", required=True, help="annotation file to write")
    parser.add_argument("--batch-size", type=int, default=4, help="images at a time (default: 4)")
    parser.add_argument(
        "--num-gpus",
        "--num-processes",
        type=int,
        default=1,
        help="processes that share the images, one for each GPU if there are any (default: 1)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also predict masks for annotations that have a segmentation, and replace it",
    )
    parser.add_argument(
        "--mask-format",
        choices=MASK_FORMATS,
        default="rle",
        help="rle: exact; polygon: for tools that read no RLE; one-polygon: for tools that know "
        "only one polygon for each object (default: rle)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1.0,
        help="pixels by which a polygon may leave out corners of a mask; 0: none (default: 1)",
    )
    parser.add_argument(
        "--compare",
        metavar="FULL_JSON",
        help="file with the same annotation ids and all masks: print the mean IoU with these",
    )
    args = parse_args(parser, argv)
    if args.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.num_gpus < 1:
        parser.error(f"--num-gpus must be at least 1, got {args.num_gpus}")
    if not 0 <= args.tolerance < float("inf"):
        parser.error(f"--tolerance must be 0 or more, got {args.tolerance}")
    if args.compare and not os.path.isfile(args.compare):
        parser.error(f"--compare: there is no file {args.compare}")
    return args


@program
def main(argv=None):
    args = get_args(argv)
    exit_code = mp.get_context("spawn").Value("i", 0)
    launch(run, args.num_gpus, args=(args, exit_code))
    return exit_code.value


def run(args, exit_code):
    """What each of the processes does; the first one sets the exit code."""
    with user_errors():
        exit_code.value |= predict(args)


def predict(args):
    setup_logger(name="contrastmask", distributed_rank=comm.get_rank())
    logger = logging.getLogger("contrastmask.predict_masks")
    share_cores()
    # Complain before the work, not after it.
    compares = args.compare and comm.is_main_process()
    true_masks = read_masks(args.compare) if compares else {}
    predictor = build_predictor(args)
    completion = complete_masks(
        predictor,
        args.json,
        args.images,
        args.output,
        batch_size=args.batch_size,
        num_workers=predictor.cfg.DATALOADER.NUM_WORKERS,
        replace=args.all,
        mask_format=args.mask_format,
        tolerance=args.tolerance,
    )
    if completion is None:  # the first process has it
        return 0
    logger.info(
        f"Wrote {args.output}: {len(completion.predicted)} masks predicted, {completion.num_kept} "
        f"annotations had one, {completion.num_left_out} left out (crowds, ignored, no area)"
    )
    if completion.overlaps:
        overlaps = completion.overlaps
        logger.info(
            f"IoU of polygons with the masks: mean {sum(overlaps) / len(overlaps):.4f}, least "
            f"{min(overlaps):.4f}"
        )
    if args.mask_format != "rle":
        logger.info(
            f"{completion.num_rewritten} masks that the file had became polygons, the same to the "
            f"pixel. Holes and parts joined to an outline: {completion.num_slits}"
        )
    exit_code = 0
    if completion.unreadable:
        names = ", ".join(name for name, _ in completion.unreadable)
        logger.error(f"{len(completion.unreadable)} images could not be read: {names}")
        exit_code = _EXIT_SKIPPED
    if args.compare:
        try:
            print(completion.compare(true_masks, predictor.class_split))
        except ValueError as error:
            logger.error(f"The masks could not be compared with {args.compare}: {error}")
            return _EXIT_NOT_COMPARED
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
