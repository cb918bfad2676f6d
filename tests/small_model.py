"""A detector with random weights, and built-in data, both as small as possible."""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.modeling import build_model

from contrastmask.checkpoint import ContrastMaskCheckpointer, Description
from contrastmask.data import class_split_from_config
from contrastmask.data.shapes import (
    SHAPE_BASE_CLASSES,
    SHAPE_CLASSES,
    ShapesParams,
    draw_image,
    write_shapes,
)
from contrastmask.engine import load_config

ROOT = Path(__file__).parents[1]
CONFIG_FILE = str(ROOT / "configs" / "quickstart.yaml")
SIDE = 64
_SMALL = [
    *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.MIN_SIZE_TEST", str(SIDE), "MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "5"),
    *("MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.CONV_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.LOGIT_INIT_STD", "0.3"),
    *("MODEL.ROI_MASK_HEAD.COLOR_CRF.AT_TEST", "False"),
    *("MODEL.ROI_CONTRASTIVE_HEAD.NUM_CONV", "1", "MODEL.ROI_CONTRASTIVE_HEAD.CONV_DIM", "32"),
]


def write_data(folder, num_images=6):
    """Write images of 64 pixels to `folder`; see `write_shapes`."""
    write_shapes(str(folder), ShapesParams(num_images, 1, SIDE, 0))


# Category ids whose order is not that of the names, and not its own inverse.
IDS = {name: 4 + 3 * (9 * i % 14) for i, name in enumerate(SHAPE_CLASSES)}
_ODD_SIZES = ((64, 44), (40, 64), (58, 36))  # height, width


def write_odd_data(folder, split="train", num_images=5, seed=0):
    """
    Write images that are not square, of several sizes, to `folder`/`split`, and annotation files
    `split`.json (masks of base classes) and `split`_full.json. Ids are neither contiguous nor in
    the order of the file.
    """
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number in range(num_images):
        height, width = _ODD_SIZES[number % 3]
        pixels, objects = draw_image(SIDE, [seed, number])
        name = f"{number}.png"
        cv2.imwrite(str(folder / split / name), pixels[:height, :width])
        image_id = 90 - 7 * number
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for class_name, mask in objects:
            mask = mask[:height, :width].astype(np.uint8)
            if mask.sum() < 20:
                continue
            runs = np.flatnonzero(np.diff(np.pad(mask.T.ravel(), 1))).tolist()
            counts = np.diff([0, *runs, mask.size]).tolist()
            annotations.append(
                {
                    "id": 500 - 3 * len(annotations),
                    "image_id": image_id,
                    "category_id": IDS[class_name],
                    "bbox": list(cv2.boundingRect(mask)),
                    "iscrowd": 0,
                    "segmentation": {"size": [height, width], "counts": counts},
                }
            )
    categories = [{"id": IDS[name], "name": name} for name in SHAPE_CLASSES]
    base = {IDS[name] for name in SHAPE_BASE_CLASSES}
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"{split}_full.json").write_text(json.dumps(content))
    for x in annotations:
        if x["category_id"] not in base:
            del x["segmentation"]
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


def options(folder, name, annotations="train"):
    """
    KEY VALUE pairs: small sizes, and dataset `name`, which is the data in `folder` with boxes for
    novel classes, or with masks for all classes if `annotations` is "train_full".
    """
    files = [str(folder / "annotations" / f"{annotations}.json"), str(folder / "train")]
    pairs = {
        "DATASETS.COCO_FORMAT": str([[name, *files]]),
        "DATASETS.TRAIN": f"('{name}',)",
        "DATASETS.TEST": f"('{name}',)",
    }
    return [*_SMALL, *(text for pair in pairs.items() for text in pair)]


def write_weights(path, opts):
    """Save random weights; returns the config and the model, in evaluation mode."""
    cfg = load_config(CONFIG_FILE, opts)
    torch.manual_seed(3)
    model = build_model(cfg).eval()
    torch.save({"model": model.state_dict()}, path)
    return cfg, model


def write_checkpoint(folder, opts):
    """Save random weights with config and classes, as training does; returns the path."""
    cfg, model = write_weights(folder / "weights.pth", opts)
    split = class_split_from_config(cfg)
    checkpointer = ContrastMaskCheckpointer(
        model, str(folder), description=Description.of(cfg, split)
    )
    checkpointer.save("model_final")
    return str(folder / "model_final.pth")
