"""A detector with random weights, and built-in data, both as small as can be."""

from pathlib import Path

import torch
from detectron2.modeling import build_model

from contrastmask.data.shapes import ShapesParams, write_shapes
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
    *("MODEL.ROI_CONTRASTIVE_HEAD.NUM_CONV", "1", "MODEL.ROI_CONTRASTIVE_HEAD.CONV_DIM", "32"),
]


def write_data(folder, num_images=6):
    """Write images of 64 pixels to `folder`; see `write_shapes`."""
    write_shapes(str(folder), ShapesParams(num_images, 1, SIDE, 0))


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
