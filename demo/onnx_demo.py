#!/usr/bin/env python
"""
Use an exported model with onnxruntime, NumPy and Pillow only:

    python demo/onnx_demo.py output/quickstart/onnx photo.jpg result.png
    python demo/onnx_demo.py output/quickstart/onnx photo.jpg result.png --box 10 20 200 180 star
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps

COLORS = np.array([[230, 60, 50], [40, 120, 230], [40, 170, 70], [240, 170, 20], [150, 70, 200]])


def sample(image, size, box):
    """Bilinear samples (PIL image) of a part of an image, without smoothing."""
    (width, height), (x0, y0, x1, y1) = size, box
    affine = ((x1 - x0) / width, 0, x0, 0, (y1 - y0) / height, y0)
    return image.transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)


def prepare(image, preprocessing):
    """Array (C, h, w) uint8 of a PIL image."""
    resize, (width, height) = preprocessing["resize"], image.size
    if resize["short_side"]:
        factor = min(
            resize["short_side"] / min(image.size), resize["max_long_side"] / max(image.size)
        )
        size = int(width * factor + 0.5), int(height * factor + 0.5)
        if resize["smooths_when_smaller"]:
            image = image.resize(size, Image.Resampling.BILINEAR)
        else:
            image = sample(image, size, (0, 0, width, height))
    channels = np.asarray(image).transpose(2, 0, 1)
    return np.ascontiguousarray(
        channels[::-1] if preprocessing["channel_order"] == "BGR" else channels
    )


def paste(logits, box, size, threshold):
    """Mask (H, W) bool of an image of this size (width, height), from the cells of a box."""
    cells = np.pad(1 / (1 + np.exp(-logits.astype(np.float64))), 1).astype(np.float32)
    x0, y0, x1, y1 = box
    per_x, per_y = logits.shape[1] / (x1 - x0), logits.shape[0] / (y1 - y0)
    part = (1 - x0 * per_x, 1 - y0 * per_y, 1 + (size[0] - x0) * per_x, 1 + (size[1] - y0) * per_y)
    return np.asarray(sample(Image.fromarray(cells), size, part)) >= threshold


def predict(folder, image, box=None, class_name=None):
    """Boxes (N, 4) in pixels of an RGB image, scores (N,), class names and masks (N, H, W)."""
    about = json.loads((Path(folder) / "model.json").read_text())
    names, inputs = about["class_names"], {"image": prepare(image, about["preprocessing"])}
    scale = np.array(image.size * 2) / np.tile(inputs["image"].shape[:0:-1], 2)
    if box is not None:
        box = np.clip(box, 0, image.size * 2)
        inputs["boxes"] = (box / scale)[None].astype(np.float32)
        inputs["classes"] = np.array([names.index(class_name)])
    model = about["models"]["detector" if box is None else "box_masks"]
    session = onnxruntime.InferenceSession(str(Path(folder) / model["file"]))
    outputs = {
        **inputs,
        **dict(zip([x["name"] for x in model["outputs"]], session.run(None, inputs))),
    }
    boxes = outputs["boxes"] * scale
    threshold = about["thresholds"]["mask_probability"]
    masks = [paste(x, y, image.size, threshold) for x, y in zip(outputs["mask_logits"], boxes)]
    return boxes, outputs.get("scores", np.ones(1)), [names[i] for i in outputs["classes"]], masks


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    for name in ("folder", "image", "output"):
        parser.add_argument(name)
    parser.add_argument("--box", nargs=5, metavar=("X0", "Y0", "X1", "Y1", "CLASS"))
    parser.add_argument("--min-score", type=float, default=0.5)
    args = parser.parse_args()
    image = ImageOps.exif_transpose(Image.open(args.image)).convert("RGB")
    prompt = ([float(x) for x in args.box[:4]], args.box[4]) if args.box else ()
    pixels, labels = np.array(image), []
    for i, (box, score, name, mask) in enumerate(zip(*predict(args.folder, image, *prompt))):
        if score >= args.min_score:
            pixels[mask] = 0.5 * pixels[mask] + 0.5 * COLORS[i % len(COLORS)]
            labels.append((box, f"{name} {score:.2f}"))
    picture = Image.fromarray(pixels)
    for box, text in labels:
        ImageDraw.Draw(picture).rectangle(box.tolist(), outline="white")
        ImageDraw.Draw(picture).text(box[:2], text, fill="white")
        print(text, *box.round(1))
    picture.save(args.output)


if __name__ == "__main__":
    main()
