"""A made-up image with two detections."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from contrastmask.data import ClassSplit

SIZE = 500, 600


@pytest.fixture
def split():
    """Classes 0 and 2 are base, 1 is novel, 3 is unused."""
    return ClassSplit(("ant", "bee", "cat", "dog"), base=(0, 2), novel=(1,))


@pytest.fixture
def split_of_dollars():
    """Classes whose names are no formulas, though matplotlib would take them for some."""
    return ClassSplit((r"x$\foo$", "$a_{$ x", "$5", "cat"), base=(0, 2), novel=(1,))


@pytest.fixture
def image():
    return np.full((*SIZE, 3), 100, dtype=np.uint8)


@pytest.fixture
def make_instances():
    """Function: boxes, classes, scores -> detections whose masks are the left halves of boxes."""

    def make(boxes, classes, scores):
        instances = Instances(SIZE)
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        instances.scores = torch.tensor(scores)
        masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes):
            mask[y0:y1, x0 : (x0 + x1) // 2] = True
        instances.pred_masks = masks
        generator = torch.Generator().manual_seed(0)
        instances.pred_cams = torch.randn(len(boxes), 7, 7, generator=generator)
        return instances

    return make


@pytest.fixture
def instances(make_instances, split):
    boxes = [[40, 50, 240, 250], [300, 60, 560, 400]]
    return make_instances(boxes, [split.base[0], split.novel[0]], scores=[0.9, 0.6])
