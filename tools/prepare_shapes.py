#!/usr/bin/env python
"""Write the built-in data (textured shapes, in COCO format) that the quickstart trains on."""

import argparse
import logging
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from contrastmask.data.shapes import ShapesParams, shapes_root, write_shapes  # noqa: E402


def parse_args(argv=None):
    default = ShapesParams()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output",
        default=shapes_root(),
        help="folder to write to (default: $DETECTRON2_DATASETS/shapes, or datasets/shapes)",
    )
    parser.add_argument("--num-train", type=int, default=default.num_train)
    parser.add_argument("--num-val", type=int, default=default.num_val)
    parser.add_argument("--image-size", type=int, default=default.image_size, help="pixels")
    parser.add_argument("--seed", type=int, default=default.seed)
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        params = ShapesParams(args.num_train, args.num_val, args.image_size, args.seed)
        write_shapes(args.output, params)
    except (ValueError, OSError) as error:
        print(f"prepare_shapes: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
