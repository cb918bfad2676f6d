#!/usr/bin/env python
"""Draw a trained model's predictions on images of its test data, beside the ground truth."""

import argparse
import logging

from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger

from contrastmask.data import class_split_from_config
from contrastmask.engine import load_config
from contrastmask.inference import load_model, predict
from contrastmask.visualization.prediction_sheet import (
    select_records,
    write_sheet,
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", help="checkpoint (default: MODEL.WEIGHTS of the config)")
    parser.add_argument("--output", required=True, help="PNG file to write")
    parser.add_argument(
        "--dataset", help="registered dataset (default: the first of DATASETS.TEST)"
    )
    parser.add_argument("--num-images", type=int, default=6)
    parser.add_argument("--score-threshold", type=float, default=0.5)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    args = parser.parse_args(argv)
    if args.num_images < 1:
        parser.error(f"--num-images must be at least 1, got {args.num_images}")
    return args


def main(argv=None):
    args = parse_args(argv)
    setup_logger(name="contrastmask")
    logger = logging.getLogger("contrastmask.draw_predictions")
    cfg = load_config(args.config_file, args.opts)
    dataset_name = args.dataset or cfg.DATASETS.TEST[0]
    records = DatasetCatalog.get(dataset_name)
    class_split = class_split_from_config(cfg, dataset_name)

    model = load_model(cfg, args.weights)
    records = select_records(records, class_split, args.num_images)
    detections = [predict(cfg, model, record) for record in records]
    write_sheet(args.output, records, detections, class_split, args.score_threshold)
    logger.info(f"Wrote {args.output}: {len(records)} images of {dataset_name}")


if __name__ == "__main__":
    main()
