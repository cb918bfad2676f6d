"""Test-time augmentation with both libraries that resize images."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import DatasetMapperTTA

from contrastmask import add_contrastmask_config
from contrastmask.data.tta_mapper import TTAMapper

SIZES = (32, 0, 50)  # 0: as it is


def make_cfg(backend, flip):
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.INPUT.RESIZE_BACKEND = backend
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = SIZES, 70, flip
    return cfg


@pytest.fixture
def record():
    """An image that the test loader has already made smaller."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 60), dtype=np.uint8)
    return {"image": torch.from_numpy(pixels), "height": 80, "width": 120, "file_name": "a.jpg"}


@pytest.mark.parametrize("flip", [True, False])
def test_pillow_is_as_in_detectron2(record, flip):
    cfg = make_cfg("pil", flip)
    box = np.array([[10.0, 20.0, 50.0, 70.0]])
    versions, expected = TTAMapper(cfg)(record), DatasetMapperTTA(cfg)(record)
    assert len(versions) == len(expected) == len(SIZES) * (2 if flip else 1)
    for ours, theirs in zip(versions, expected):
        assert torch.equal(ours["image"], theirs["image"])
        assert ours["file_name"] == "a.jpg"
        moved = ours["transforms"].apply_box(box)
        np.testing.assert_allclose(moved, theirs["transforms"].apply_box(box), atol=1e-9)
        np.testing.assert_allclose(ours["transforms"].inverse().apply_box(moved), box, atol=1e-9)


def test_opencv(record):
    versions = TTAMapper(make_cfg("opencv", flip=True))(record)
    image = record["image"].permute(1, 2, 0).numpy()
    for (plain, flipped), size in zip(
        zip(versions[::2], versions[1::2]), [(48, 32), (60, 40), (70, 47)]
    ):
        expected = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(plain["image"].permute(1, 2, 0), expected)
        assert torch.equal(flipped["image"], plain["image"].flip(2))
        corners = plain["transforms"].apply_box(np.array([[0.0, 0.0, 120.0, 80.0]]))
        np.testing.assert_allclose(corners, [[0, 0, *size]])
