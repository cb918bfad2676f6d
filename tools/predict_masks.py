#!/usr/bin/env python
"""
Give every box-only annotation of a COCO-format file a mask, predicted for exactly that box and
class. Annotations that have a mask, and everything else in the file, stay as they are.

    python tools/predict_masks.py --config-file configs/quickstart.yaml \\
        --weights output/quickstart/model_final.pth \\
        --json boxes.json --images folder --output boxes_with_masks.json

An interrupted run goes on where it was if the same command is given again.

Exit code 0: done. 1: failed, the reason is printed and no output is written. 3: done, but some
images could not be read and were skipped. 4: done, but the comparison failed. 130: interrupted.
"""

import argparse
import logging
import os
import sys

from detectron2.utils.logger import setup_logger

from contrastmask.data import class_split_from_config
from contrastmask.engine import load_config
from contrastmask.inference import (
    compare_masks,
    complete_masks,
    load_model,
    read_full_file,
)

_EXIT_FAILED = 1
_EXIT_SKIPPED = 3
_EXIT_NOT_COMPARED = 4
_EXIT_INTERRUPTED = 130


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config the model was trained with")
    parser.add_argument("--weights", required=True, help="checkpoint of the trained model")
    parser.add_argument("--json", required=True, help="annotation file in COCO format")
    parser.add_argument("--images", required=True, help="folder of its images")
    parser.add_argument("--output", required=True, help="annotation file to write")
    parser.add_argument("--batch-size", type=int, default=4, help="images at a time (default: 4)")
    parser.add_argument(
        "--all",
        action="store_true",
        help="also predict, and replace, the masks of annotations that have one",
    )
    parser.add_argument(
        "--compare",
        metavar="FULL_JSON",
        help="file with the same annotation ids and all masks: print the mean IoU with these",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.compare and not os.path.isfile(args.compare):
        parser.error(f"--compare: there is no file {args.compare}")
    return args


def main(argv=None):
    args = parse_args(argv)
    setup_logger(name="contrastmask")
    logger = logging.getLogger("contrastmask.predict_masks")
    try:
        cfg = load_config(args.config_file, args.opts)
        if args.compare:
            read_full_file(args.compare)  # complain before the work, not after it
        split = class_split_from_config(cfg, cfg.DATASETS.TRAIN[0])
        completion = complete_masks(
            cfg,
            load_model(cfg, args.weights),
            args.json,
            args.images,
            args.output,
            split.class_names,
            batch_size=args.batch_size,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            replace=args.all,
        )
    except (ValueError, OSError) as error:
        logger.error(str(error))
        return _EXIT_FAILED
    except KeyboardInterrupt:
        logger.error("Interrupted. The same command goes on where this one stopped.")
        return _EXIT_INTERRUPTED
    logger.info(
        f"Wrote {args.output}: {len(completion.masks)} masks predicted, {completion.num_kept} "
        f"annotations had one, {completion.num_left_out} left out (crowds, ignored, no area)"
    )
    exit_code = 0
    if completion.unreadable:
        names = ", ".join(name for name, _ in completion.unreadable)
        logger.error(f"{len(completion.unreadable)} images could not be read: {names}")
        exit_code = _EXIT_SKIPPED
    if args.compare:
        try:
            comparison = compare_masks(
                completion.masks, args.compare, split, empty=completion.empty
            )
        except ValueError as error:
            logger.error(f"The masks could not be compared: {error}")
            return _EXIT_NOT_COMPARED
        print(comparison.format())
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
