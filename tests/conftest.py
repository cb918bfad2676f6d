"""Shared pieces of the tests."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils.logger import _LOG_COUNTER

from contrastmask import add_contrastmask_config

# Programs that tests start use this checkout, whatever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def forget_messages():
    """What is logged once in a process is logged once in every test."""
    _LOG_COUNTER.clear()


@pytest.fixture
def files_parsed(monkeypatch):
    """list[str]: paths of the annotation files that are read from now on."""
    paths = []

    def counting(path, *args):
        paths.append(path)
        return open(path, *args)

    monkeypatch.setattr("contrastmask.data.coco_format.open", counting, raising=False)
    return paths


@pytest.fixture
def narrow_cfg():
    """Function: overrides -> CfgNode of a narrow ContrastMask detector like the published ones."""

    def make(*opts):
        cfg = get_cfg()
        add_contrastmask_config(cfg)
        cfg.merge_from_file("configs/COCO/Base-Published.yaml")
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 4
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
        cfg.MODEL.FPN.OUT_CHANNELS = 8
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
        cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 6
        cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 6
        cfg.MODEL.ROI_CONTRASTIVE_HEAD.CONV_DIM = 6
        cfg.MODEL.ROI_CONTRASTIVE_HEAD.PROJECTOR_DIM = 6
        cfg.merge_from_list(list(opts))
        return cfg

    return make
