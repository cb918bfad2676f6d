#!/usr/bin/env python
"""
Draw a trained model's predictions on images of its test data, beside the ground truth:

    python tools/draw_predictions.py --weights output/quickstart/model_final.pth \\
        --output output/quickstart/predictions.png
"""

import argparse
import logging
import sys

from detectron2.utils.logger import setup_logger

from contrastmask.data import check_classes, register_datasets, test_records
from contrastmask.engine.programs import (
    add_model_arguments,
    build_predictor,
    parse_args,
    program,
)
from contrastmask.visualization.prediction_sheet import (
    select_records,
    write_sheet,
)


def get_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--output", required=True, help="PNG file to write")
    parser.add_argument(
        "--dataset", help="registered dataset (default: the first of DATASETS.TEST)"
    )
    parser.add_argument("--num-images", type=int, default=6)
    parser.add_argument("--score-threshold", type=float, default=0.5)
    args = parse_args(parser, argv)
    if args.num_images < 1:
        parser.error(f"--num-images must be at least 1, got {args.num_images}")
    return args


@program
def main(argv=None):
    args = get_args(argv)
    setup_logger(name="contrastmask")
    predictor = build_predictor(args)
    cfg = predictor.cfg
    if not (args.dataset or cfg.DATASETS.TEST):
        raise ValueError("DATASETS.TEST names no dataset: give --dataset")
    register_datasets(cfg)
    dataset_name = args.dataset or cfg.DATASETS.TEST[0]
    check_classes(cfg, [dataset_name])
    records = test_records(cfg, dataset_name)
    records = select_records(records, predictor.class_split, args.num_images)
    detections = predictor([x["file_name"] for x in records])
    write_sheet(
        args.output,
        records,
        detections,
        predictor.class_split,
        args.score_threshold,
        predictor.read_image,
    )
    logging.getLogger("contrastmask.draw_predictions").info(
        f"Wrote {args.output}: {len(records)} images of {dataset_name}"
    )


if __name__ == "__main__":
    sys.exit(main())
