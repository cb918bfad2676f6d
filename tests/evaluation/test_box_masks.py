"""Masks for ground-truth boxes against true masks."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Instances
from small_model import CONFIG_FILE, options, write_data

from contrastmask.data import class_split_from_config
from contrastmask.data.segmentation import to_rle
from contrastmask.engine import load_config
from contrastmask.evaluation.box_masks import evaluate_box_masks

SIDE = 28


class FixedMasks:
    """In place of a detector: the same probabilities in every box."""

    def __init__(self, probabilities):
        self.probabilities = probabilities

    def inference(self, inputs, detected_instances, do_postprocess):
        assert not do_postprocess
        results = []
        for x in detected_instances:
            result = Instances(x.image_size, pred_boxes=x.pred_boxes)
            result.pred_masks = self.probabilities.expand(len(x), 1, SIDE, SIDE)
            results.append(result)
        return results


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_data(folder)
    cfg = load_config(CONFIG_FILE, options(folder, "box_mask_images", "train_full"))
    return cfg, class_split_from_config(cfg, "box_mask_images")


def evaluate(data, probabilities, backend="auto"):
    cfg, split = data
    return evaluate_box_masks(
        cfg, FixedMasks(probabilities), "box_mask_images", split, backend=backend
    )


def test_filled_boxes_against_the_area_of_the_masks(data):
    _, split = data
    results = evaluate(data, torch.ones(SIDE, SIDE))
    expected = {"base": [], "novel": []}
    for record in DatasetCatalog.get("box_mask_images"):
        size = record["height"], record["width"]
        for x in record["annotations"]:
            mask = to_rle(x["segmentation"], *size)
            x0, y0, width, height = x["bbox"]
            share = mask_util.area(mask) / (width * height)
            expected["base" if x["category_id"] in split.base else "novel"].append(share)
    for group, shares in expected.items():
        # Boxes are pasted to whole pixels.
        assert results[group]["IoU"] == pytest.approx(100 * np.mean(shares), abs=2)
    both = expected["base"] + expected["novel"]
    assert results["all"]["IoU"] == pytest.approx(100 * np.mean(both), abs=2)


def test_libraries_agree(data):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(SIDE, SIDE, generator=generator) ** 0.2
    fast = evaluate(data, probabilities, "auto")
    slow = evaluate(data, probabilities, "pycocotools")
    assert fast == slow
    assert 0 < fast["all"]["AP"] < fast["all"]["AP50"]


def test_no_pixel(data):
    results = evaluate(data, torch.zeros(SIDE, SIDE))
    assert results["novel"] == {"IoU": 0, "AP": 0, "AP50": 0}
