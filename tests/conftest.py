"""Shared pieces of the tests."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from contrastmask import add_contrastmask_config

REFERENCE_DIR = Path(__file__).parent / "reference"
# Programs that tests start use this checkout, whatever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)


@pytest.fixture
def load_reference():
    """Function: file name -> dict of float32, bool or int64 tensors measured with authors' code."""

    def load(name):
        with np.load(REFERENCE_DIR / name) as data:
            return {k: torch.from_numpy(data[k]) for k in data if data[k].dtype.kind != "U"}

    return load


@pytest.fixture
def fill():
    """Function: (name, shape, scale) -> the made-up tensor of that name in [-scale, scale)."""

    def make(name, shape, scale):
        generator = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
        values = generator.random(tuple(shape), np.float32) * 2 - 1
        return torch.from_numpy(values * np.float32(scale))

    return make


@pytest.fixture
def fill_parameters(fill):
    """
    Function: (module, prefix, official names) sets parameters and BatchNorm statistics of a module
    as the reference had them. The names map our parameter names to the authors'.
    """

    def set_all(module, prefix, official_name):
        for name, value in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            official = official_name(name)
            full_name = prefix + official
            if value.dim() >= 2:
                fan_in = value[0].numel()
                new = fill(full_name, value.shape, (6 / fan_in) ** 0.5)
            elif official.endswith("bn.weight") or official.endswith("running_var"):
                new = 1 + fill(full_name, value.shape, 0.2)
            elif official.endswith("running_mean"):
                new = fill(full_name, value.shape, 0.1)
            else:
                new = fill(full_name, value.shape, 0.05)
            value.copy_(new)

    return set_all


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def heads_cfg():
    """CfgNode of narrow heads on feature maps with 16 channels, 5 classes, on the CPU."""
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NAME = "ContrastMaskROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_BOX_HEAD.NAME = "ContrastMaskBoxHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 12
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "ContrastMaskMaskHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    cfg.MODEL.ROI_CONTRASTIVE_HEAD.NUM_CONV = 2
    cfg.MODEL.ROI_CONTRASTIVE_HEAD.CONV_DIM = 10
    cfg.MODEL.ROI_CONTRASTIVE_HEAD.PROJECTOR_DIM = 6
    cfg.SOLVER.MAX_ITER = 120
    return cfg


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


@pytest.fixture
def run_heads(make_batch):
    """
    Function: (heads, batch or None, iteration) -> losses of one training step of RoI heads, with
    the event storage of that step.
    """

    def run(heads, batch=None, iteration=0):
        features, proposals, targets = batch or make_batch()
        generator = torch.Generator().manual_seed(5)
        pixels = torch.rand(len(targets), 3, 96, 96, generator=generator)
        images = ImageList(pixels.to(features["p2"].device), [(96, 96)] * len(targets))
        heads.train()
        with EventStorage(iteration) as storage:
            _, losses = heads(images, features, proposals, targets)
        return losses, storage

    return run


@pytest.fixture
def build_heads():
    """Function: cfg -> RoI heads for feature maps p2 and p3 with 16 channels."""

    def build(cfg):
        torch.manual_seed(1)
        shapes = {
            "p2": ShapeSpec(channels=16, stride=4),
            "p3": ShapeSpec(channels=16, stride=8),
        }
        return build_roi_heads(cfg, shapes)

    return build


@pytest.fixture
def make_batch():
    """
    Function: made-up batch of 96 x 96 images -> (features, proposals, targets). Each image has
    `boxes` ground-truth boxes with discs as masks; every second one is base. Proposals are the
    ground-truth boxes moved a little, and random boxes.
    """

    def make(num_images=2, num_boxes=4, has_mask=None, masks="bitmask", device="cpu"):
        rng = torch.Generator().manual_seed(7)
        side = 96
        features = {
            name: torch.randn(num_images, 16, side // s, side // s, generator=rng).to(device)
            for name, s in (("p2", 4), ("p3", 8))
        }
        proposals, targets = [], []
        for _ in range(num_images):
            low = torch.rand(num_boxes, 2, generator=rng) * 50
            boxes = torch.cat([low, low + 20 + 24 * torch.rand(num_boxes, 2, generator=rng)], 1)
            target = Instances((side, side))
            target.gt_boxes = Boxes(boxes)
            target.gt_classes = torch.arange(num_boxes) % 5
            base = torch.arange(num_boxes) % 2 == 0
            target.gt_has_mask = base if has_mask is None else torch.full((num_boxes,), has_mask)
            if masks == "bitmask":
                target.gt_masks = BitMasks(_discs(boxes, side))
            else:
                target.gt_masks = PolygonMasks([_octagon(b) for b in boxes])
            moved = boxes + torch.randn(num_boxes, 4, generator=rng)
            low = torch.rand(20, 2, generator=rng) * 60
            others = torch.cat([low, low + 30], 1)
            proposal = Instances((side, side))
            proposal.proposal_boxes = Boxes(torch.cat([moved, others]).clamp(0, side))
            proposal.objectness_logits = torch.zeros(len(moved) + len(others))
            proposals.append(proposal.to(device))
            targets.append(target.to(device))
        return features, proposals, targets

    return make


def _discs(boxes, side):
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    radius = (boxes[:, 2:] - boxes[:, :2]) / 2
    x = (x - center[:, 0, None, None]) / radius[:, 0, None, None]
    y = (y - center[:, 1, None, None]) / radius[:, 1, None, None]
    return x**2 + y**2 <= 1


def _octagon(box):
    angle = np.arange(8) * np.pi / 4
    x0, y0, x1, y1 = box.tolist()
    x = (x0 + x1) / 2 + (x1 - x0) / 2 * np.cos(angle)
    y = (y0 + y1) / 2 + (y1 - y0) / 2 * np.sin(angle)
    return [np.stack([x, y], axis=1).ravel()]
