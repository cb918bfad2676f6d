#!/usr/bin/env python
"""
Detect and segment objects in images or in a video, and draw what is found.

    python demo/demo.py --weights output/quickstart/model_final.pth \\
        --input image.jpg folder 'more/*.png' --output output/demo
    python demo/demo.py --weights output/quickstart/model_final.pth \\
        --video-input clip.mp4 --output output/demo

For each image.jpg there is then output/demo/image.png: masks, boxes, classes and scores, base
classes in blue and novel ones in orange. With --explain there is also image_explained.png: a row
for each detection with its class activation map (CAM), its enhanced features (their first principal
component) and its mask.

--video-input and --webcam draw frame by frame: into a video, if --output names a folder or a file,
else in a window, which Esc closes.

Exit code 1 if there were no images or frames, or some images could not be read.
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

from contrastmask.data.images import ImageFileError
from contrastmask.engine.programs import (
    add_model_arguments,
    build_predictor,
    parse_args,
    program,
)
from contrastmask.inference.explanation_maps import adding_enhanced_maps
from contrastmask.visualization.explanation import draw_explanation
from contrastmask.visualization.figure import save_png
from contrastmask.visualization.overlays import draw_detections
from contrastmask.visualization.video import Video, VideoFile, Window

logger = logging.getLogger("contrastmask.demo")


def get_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="image files, folders, or patterns in quotes")
    source.add_argument("--video-input", metavar="FILE", help="video file")
    source.add_argument("--webcam", action="store_true", help="the first camera")
    parser.add_argument("--output", help="folder for the pictures, or video file to write")
    parser.add_argument("--score-threshold", type=float, default=0.5)
    parser.add_argument("--explain", action="store_true", help="also draw CAMs and features")
    parser.add_argument(
        "--max-explained", type=int, default=8, help="detections to explain in each image, from 1"
    )
    args = parse_args(parser, argv)
    if args.max_explained < 1:
        parser.error(f"--max-explained: give 1 or more, not {args.max_explained}")
    if args.input and not args.output:
        parser.error("--input needs --output, a folder for the pictures")
    if args.explain and not args.input:
        parser.error("--explain belongs to --input")
    return args


@program
def main(argv=None):
    args = get_args(argv)
    setup_logger(name="contrastmask")
    if args.input:
        return draw_images(args)
    return draw_video(args)


def draw_images(args):
    """Draw each image; returns the exit code."""
    paths = find_images(args.input)
    if not paths:
        raise ValueError(f"There are no images in {', '.join(args.input)}")
    predictor = build_predictor(args)
    if args.explain and not predictor.cfg.MODEL.MASK_ON:
        raise ValueError("--explain needs a model with masks (MODEL.MASK_ON True)")
    os.makedirs(args.output, exist_ok=True)
    num_failed = 0
    # Only on demand: it takes time for every detection.
    with adding_enhanced_maps(predictor.model) if args.explain else contextlib.nullcontext():
        for path, name in zip(tqdm(paths, unit="image", disable=None), output_names(paths)):
            try:
                image = predictor.read_image(path)
            except ImageFileError as error:
                logger.error(str(error))
                num_failed += 1
                continue
            instances, drawn = detect_and_draw(predictor, image, args.score_threshold)
            Image.fromarray(drawn).save(os.path.join(args.output, f"{name}.png"))
            if args.explain and len(instances):
                explained = instances[: args.max_explained]
                figure = draw_explanation(image, explained, predictor.class_split)
                save_png(figure, os.path.join(args.output, f"{name}_explained.png"))
            logger.info(f"{path}: {len(instances)} objects")
    logger.info(f"Drew {len(paths) - num_failed} of {len(paths)} images in {args.output}")
    return 1 if num_failed else 0


def draw_video(args):
    """Draw each frame of a video or of a camera."""
    video = Video.of_file(args.video_input) if args.video_input else Video.of_camera()
    with video:
        predictor = build_predictor(args)
        source = args.video_input or "webcam"
        sink = VideoFile(args.output, source, video.rate) if args.output else Window(source)
        with sink as output:
            for frame in tqdm(video, total=video.num_frames, unit="frame", disable=None):
                _, drawn = detect_and_draw(predictor, frame, args.score_threshold)
                if not output.show(drawn):
                    break
        if not video.num_read:
            raise ValueError(f"{source}: no frame of it can be read")
    where = f" to {output.path}" if args.output else ""
    logger.info(f"Drew {video.num_read} frames of {source}{where}")


def detect_and_draw(predictor, image, score_threshold):
    """Detections in an RGB array (H, W, 3), and the picture of them."""
    instances = predictor(image)
    instances = instances[instances.scores >= score_threshold]
    return instances, draw_detections(image, instances, predictor.class_split)


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
