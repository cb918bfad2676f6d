"""Use an exported model: python demo/onnx_demo.py output/quickstart/onnx photo.jpg result.png"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def sample(image, size, box):
    """Bilinear samples (PIL image) of a part of an image, without smoothing."""
    (width, height), (x0, y0, x1, y1) = size, box
    affine = ((x1 - x0) / width, 0, x0, 0, (y1 - y0) / height, y0)
    return image.transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)


def predict(folder, image, box=None, class_name=None):
    """Boxes in pixels, scores, class names and masks of a PIL image's objects, or of one box."""
    about = json.load(open(f"{folder}/model.json"))
    names, resize, size = about["class_names"], about["preprocessing"]["resize"], image.size
    factor = min(resize["short_side"] / min(size), resize["max_long_side"] / max(size)) or 1
    size = tuple(int(x * factor + 0.5) for x in size)
    pixels = sample(image, size, (0, 0, *image.size))
    if resize["smooths_when_smaller"]:
        pixels = image.resize(size, Image.Resampling.BILINEAR)
    order = {"RGB": 1, "BGR": -1}[about["preprocessing"]["channel_order"]]
    inputs = {"image": np.array(np.asarray(pixels)[:, :, ::order].transpose(2, 0, 1), order="C")}
    scale = np.divide(image.size * 2, size * 2)
    if box is not None:
        inputs["boxes"] = np.float32([np.clip(box, 0, image.size * 2) / scale])
        inputs["classes"] = np.array([names.index(class_name)])
    model = about["models"]["detector" if box is None else "box_masks"]
    session = onnxruntime.InferenceSession(f"{folder}/{model['file']}")
    outputs = zip([x["name"] for x in model["outputs"]], session.run(None, inputs))
    found, masks = {"scores": np.ones(1), **inputs, **dict(outputs)}, []
    for logits, corners in zip(found["mask_logits"], found["boxes"] * scale):
        cells = Image.fromarray(np.float32(np.pad(1 / (1 + np.exp(-logits.astype(float))), 1)))
        cell = (corners[2:] - corners[:2]) / logits.shape[::-1]
        part = ((0, 0, *image.size) - np.tile(corners[:2], 2)) / np.tile(cell, 2) + 1
        mask = np.array(sample(cells, image.size, part))
        masks.append(mask >= about["thresholds"]["mask_probability"])
    return found["boxes"] * scale, found["scores"], [names[i] for i in found["classes"]], masks


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
    pixels = np.array(image)
    for box, score, name, mask in zip(*predict(sys.argv[1], image)):
        if score >= 0.5:
            print(f"{name} {score:.2f}", *box.round(1))
            pixels[mask] = pixels[mask] // 2 + np.random.randint(0, 128, 3)
    Image.fromarray(pixels).save(sys.argv[3])
