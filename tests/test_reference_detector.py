"""
A whole detector against numbers measured with the authors' code. The files are not part of this
repository; CONTRASTMASK_REFERENCE_DIR names the folder with official_layout_fp16.pth, image.png and
expected.npz (docs/REPRODUCTION.md describes them).
"""

import os

import numpy as np
import pytest
import torch

from contrastmask import Predictor

REFERENCE_DIR = os.environ.get("CONTRASTMASK_REFERENCE_DIR", "")

pytestmark = pytest.mark.skipif(
    not REFERENCE_DIR,
    reason="CONTRASTMASK_REFERENCE_DIR is not set: it names the folder of the reference detector",
)


@pytest.fixture(scope="module")
def expected():
    with np.load(os.path.join(REFERENCE_DIR, "expected.npz")) as arrays:
        values = {k: torch.as_tensor(arrays[k]) for k in arrays}
    shape = values.pop("masks_shape").tolist()
    bits = np.unpackbits(values["masks"].numpy(), count=int(np.prod(shape)))
    values["masks"] = torch.from_numpy(bits).bool().view(shape)
    return values


@pytest.fixture(scope="module")
def detections(expected):
    long_side, short_side = expected["test_scale"].tolist()
    opts = (
        "MODEL.DEVICE cpu MODEL.RESNETS.STEM_OUT_CHANNELS 16 MODEL.RESNETS.RES2_OUT_CHANNELS 64 "
        f"MODEL.RESNETS.WIDTH_PER_GROUP 16 INPUT.MIN_SIZE_TEST {short_side} "
        f"INPUT.MAX_SIZE_TEST {long_side}"
    ).split()
    predictor = Predictor(
        "COCO/contrastmask_R_50_FPN_1x_voc2nonvoc.yaml",
        os.path.join(REFERENCE_DIR, "official_layout_fp16.pth"),
        opts=opts,
    )
    logits = []
    predictor.model.roi_heads.mask_head.register_forward_hook(lambda *args: logits.append(args[-1]))
    instances = predictor(os.path.join(REFERENCE_DIR, "image.png"))
    instances.mask_logits = torch.cat(logits)[:, 0]

    # Equal scores to five digits may come in another order.
    same_class = instances.pred_classes[:, None] == expected["labels"]
    distance = torch.cdist(instances.pred_boxes.tensor, expected["boxes"], p=float("inf"))
    nearest = distance.masked_fill(~same_class, float("inf")).argmin(dim=0)
    assert sorted(nearest.tolist()) == list(range(len(expected["boxes"])))
    assert len(instances) == len(expected["boxes"])
    return instances[nearest]


def test_boxes_scores_and_classes(detections, expected):
    assert torch.equal(detections.pred_classes, expected["labels"])
    boxes = detections.pred_boxes.tensor
    torch.testing.assert_close(boxes, expected["boxes"], atol=0.01, rtol=0)
    torch.testing.assert_close(detections.scores, expected["scores"], atol=1e-4, rtol=0)


def test_cams(detections, expected):
    torch.testing.assert_close(detections.pred_cams, expected["cams"], atol=1e-2, rtol=1e-4)


def test_masks(detections, expected):
    logits = expected["mask_logits"].float()
    torch.testing.assert_close(detections.mask_logits, logits, atol=1e-2, rtol=0)
    agreement = (detections.pred_masks == expected["masks"]).float().mean(dim=(1, 2))
    assert agreement.min() >= 0.999
