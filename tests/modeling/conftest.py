"""Narrow RoI heads and synthetic batches for them."""

import copy

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from contrastmask import add_contrastmask_config

# (height, width) of the images of a batch, and their padded size; whole cells of all feature maps.
SIZES = [(96, 128), (120, 80)]
PADDED = (120, 128)
CLASSES = (3, 0, 4, 1, 2)


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
    cfg.MODEL.ROI_CONTRASTIVE_HEAD.LOSS_WEIGHT = 0.3
    cfg.SOLVER.MAX_ITER = 120
    return cfg


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
def run_heads(make_batch):
    """
    Function: (heads, batch or None, iteration) -> losses of one training step of RoI heads, with
    the event storage of that step.
    """

    def run(heads, batch=None, iteration=0):
        features, proposals, targets = batch or make_batch()
        generator = torch.Generator().manual_seed(5)
        pixels = torch.rand(len(targets), 3, *PADDED, generator=generator)
        images = ImageList(pixels.to(features["p2"].device), [tuple(x.image_size) for x in targets])
        heads.train()
        with EventStorage(iteration) as storage:
            _, losses = heads(images, features, proposals, targets)
        return losses, storage

    return run


@pytest.fixture
def make_batch():
    """
    Function: synthetic batch of images of the sizes above -> (features, proposals, targets). The
    first image has 5 ground-truth boxes, of which 3 are base, the second 3, of which 2 are base, or
    as many as `num_boxes` says. Masks are discs with a corner cut off, or polygons. Proposals are
    the ground-truth boxes moved a little, and random boxes.
    """

    def make(num_images=2, num_boxes=(5, 3), has_mask=None, masks="bitmask", device="cpu"):
        rng = torch.Generator().manual_seed(7)
        features = {
            name: torch.randn(num_images, 16, *(x // s for x in PADDED), generator=rng).to(device)
            for name, s in (("p2", 4), ("p3", 8))
        }
        proposals, targets = [], []
        for k in range(num_images):
            height, width = SIZES[k % len(SIZES)]
            num = num_boxes[k % len(num_boxes)]
            extent = torch.tensor([width, height])
            low = torch.rand(num, 2, generator=rng) * (extent - 46)
            boxes = torch.cat([low, low + 20 + 24 * torch.rand(num, 2, generator=rng)], 1)
            number = torch.arange(num) + 2 * k
            target = Instances((height, width))
            target.gt_boxes = Boxes(boxes)
            target.gt_classes = torch.tensor(CLASSES)[number % 5]
            base = torch.tensor([True, False, True, True, False])[number % 5]
            target.gt_has_mask = base if has_mask is None else torch.full((num,), has_mask)
            if masks == "bitmask":
                target.gt_masks = BitMasks(_cut_discs(boxes, height, width))
            else:
                target.gt_masks = PolygonMasks([_polygon(b) for b in boxes])
            moved = boxes + torch.randn(num, 4, generator=rng)
            low = torch.rand(20, 2, generator=rng) * (extent - 34)
            others = torch.cat([low, low + torch.tensor([34.0, 26.0])], 1)
            proposal = Instances((height, width))
            proposal.proposal_boxes = Boxes(torch.cat([moved, others]))
            proposal.proposal_boxes.clip((height, width))
            proposal.objectness_logits = torch.zeros(len(moved) + len(others))
            proposals.append(proposal.to(device))
            targets.append(target.to(device))
        return features, proposals, targets

    return make


def _cut_discs(boxes, height, width):
    """Masks (N, H, W) of discs without their upper right quarter."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    radius = (boxes[:, 2:] - boxes[:, :2]) / 2
    x = (x - center[:, 0, None, None]) / radius[:, 0, None, None]
    y = (y - center[:, 1, None, None]) / radius[:, 1, None, None]
    return (x**2 + y**2 <= 1) & ~((x > 0.2) & (y < 0))


def _polygon(box):
    """Five corners of an octagon in the box."""
    angle = np.arange(5) * np.pi / 4
    x0, y0, x1, y1 = box.tolist()
    x = (x0 + x1) / 2 + (x1 - x0) / 2 * np.cos(angle)
    y = (y0 + y1) / 2 + (y1 - y0) / 2 * np.sin(angle)
    return [np.stack([x, y], axis=1).ravel()]


@pytest.fixture
def detect():
    """Function: (heads, features, proposals) -> list[Instances], the detections of RoI heads."""

    def run(heads, features, proposals):
        heads.eval()
        with torch.no_grad():
            return heads(None, features, copy.deepcopy(proposals))[0]

    return run


class Spy:
    """What a function was called with, and what it returned, in the order of the calls."""

    def __init__(self, monkeypatch, owner, name):
        self.calls, self.results = [], []
        function = getattr(owner, name)

        def call(*args, **kwargs):
            self.calls.append(args)
            self.results.append(function(*args, **kwargs))
            return self.results[-1]

        monkeypatch.setattr(owner, name, call)


@pytest.fixture
def spy(monkeypatch):
    """Function: (owner, name of its function) -> Spy."""
    return lambda owner, name: Spy(monkeypatch, owner, name)
