#!/usr/bin/env python
"""
Detect and segment objects in images, and draw what is found.

    python demo/demo.py --config-file configs/quickstart.yaml \\
        --weights output/quickstart/model_final.pth \\
        --input image.jpg folder 'more/*.png' --output output/demo

For each image.jpg there is then output/demo/image.png: masks, boxes, classes and scores, base
classes in blue and novel ones in orange. With --explain there is also image_explained.png: a row
for each detection with its class activation map (CAM), its enhanced features (their first principal
component) and its mask.

Exit code 1 if there were no images or some of them could not be read.
"""

import argparse
import contextlib
import glob
import logging
import os
import sys

from detectron2.utils.logger import setup_logger
from PIL import Image
from tqdm import tqdm

from contrastmask.data import class_split_from_config
from contrastmask.data.images import ImageFileError, read_image
from contrastmask.engine import load_config
from contrastmask.inference import load_model, predict
from contrastmask.inference.enhanced_maps import adding_enhanced_maps
from contrastmask.visualization.explanation import draw_explanation
from contrastmask.visualization.figure import save_png
from contrastmask.visualization.overlays import draw_detections

logger = logging.getLogger("contrastmask.demo")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config the model was trained with")
    parser.add_argument("--weights", required=True, help="checkpoint of the trained model")
    parser.add_argument(
        "--input", required=True, nargs="+", help="image files, folders, or patterns in quotes"
    )
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument("--score-threshold", type=float, default=0.5)
    parser.add_argument("--explain", action="store_true", help="also draw CAMs and features")
    parser.add_argument(
        "--max-explained", type=int, default=8, help="detections to explain in each image, from 1"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides of the config"
    )
    args = parser.parse_args(argv)
    if args.max_explained < 1:
        parser.error(f"--max-explained: give 1 or more, not {args.max_explained}")
    return args


def main(argv=None):
    args = parse_args(argv)
    setup_logger(name="contrastmask")
    paths = find_images(args.input)
    if not paths:
        logger.error(f"There are no images in {', '.join(args.input)}")
        return 1
    cfg = load_config(args.config_file, args.opts)
    if args.explain and not cfg.MODEL.MASK_ON:
        logger.error("--explain needs a model with masks (MODEL.MASK_ON True)")
        return 1
    class_split = class_split_from_config(cfg, cfg.DATASETS.TRAIN[0])
    model = load_model(cfg, args.weights)
    os.makedirs(args.output, exist_ok=True)
    num_failed = 0
    # Not always: it takes time for every detection.
    with adding_enhanced_maps(model) if args.explain else contextlib.nullcontext():
        for path, name in zip(tqdm(paths, unit="image", disable=None), output_names(paths)):
            try:
                image = read_image(path, format="RGB")
                instances = predict(cfg, model, {"file_name": path})
            except ImageFileError as error:
                logger.error(str(error))
                num_failed += 1
                continue
            instances = instances[instances.scores >= args.score_threshold]
            drawn = draw_detections(image, instances, class_split)
            Image.fromarray(drawn).save(os.path.join(args.output, f"{name}.png"))
            if args.explain and len(instances):
                figure = draw_explanation(image, instances[: args.max_explained], class_split)
                save_png(figure, os.path.join(args.output, f"{name}_explained.png"))
            logger.info(f"{path}: {len(instances)} objects")
    logger.info(f"Drew {len(paths) - num_failed} of {len(paths)} images in {args.output}")
    return 1 if num_failed else 0


def find_images(inputs):
    """Files that are named, images in the folders that are named, and matches of patterns."""
    extensions = set(Image.registered_extensions())
    paths = []
    for x in inputs:
        if os.path.isdir(x):
            names = sorted(os.listdir(x))
            paths += [
                os.path.join(x, n) for n in names if os.path.splitext(n)[1].lower() in extensions
            ]
        elif glob.has_magic(x) and not os.path.exists(x):
            matches = sorted(glob.glob(x, recursive=True))
            paths += [path for path in matches if os.path.isfile(path)]
        else:
            paths.append(x)  # if there is no such file, reading it says so
    return list(dict.fromkeys(paths))


def output_names(paths):
    """Names without extension, numbered where several paths have the same one."""
    names, taken = [], set()
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0]
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        names.append(name)
    return names


if __name__ == "__main__":
    sys.exit(main())
