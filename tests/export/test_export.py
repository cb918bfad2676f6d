"""Exported models against the predictor: a tiny detector, with everything that inference has."""

import json
import runpy

import cv2
import numpy as np
import pytest
import small_model
import torch
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from exported_model import (
    NUM_BOXES,
    SIZES,
    check_box_masks,
    check_detector,
    check_onnx,
    load,
    random_image,
)
from PIL import Image
from torch import nn

from contrastmask import Predictor, get_config
from contrastmask.export import export_model
from contrastmask.modeling import build_model
from contrastmask.modeling.backbone import EfficientNetLite

TINY = [
    *("MODEL.BACKBONE.NAME", "build_tiny_fpn_backbone", "MODEL.FPN.IN_FEATURES", "['a', 'b']"),
    *("MODEL.RPN.IN_FEATURES", "['p2', 'p3']", "MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[30], [120]]"),
    *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False"),
    *("MODEL.ROI_MASK_HEAD.COLOR_CRF.AT_TEST", "True"),
    *("MODEL.ROI_MASK_HEAD.SELF_TRAINING.LOSS_WEIGHT", "1.0"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.085", "TEST.DETECTIONS_PER_IMAGE", "12"),
]


class Tiny(Backbone):
    def __init__(self):
        super().__init__()
        self.a = Conv2d(3, 16, 7, stride=4, padding=3, norm=nn.BatchNorm2d(16))
        self.b = Conv2d(16, 24, 3, stride=2, padding=1, activation=torch.relu)

    def forward(self, x):
        a = self.a(x)
        return {"a": a, "b": self.b(a)}

    def output_shape(self):
        return {"a": ShapeSpec(channels=16, stride=4), "b": ShapeSpec(channels=24, stride=8)}


@BACKBONE_REGISTRY.register()
def build_tiny_fpn_backbone(cfg, input_shape):
    return FPN(Tiny(), cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS)


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(small_model.ROOT / "tools" / "export_model.py"))["main"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    small_model.write_odd_data(folder)
    return small_model.write_checkpoint(folder, [*small_model.options(folder, "export"), *TINY])


@pytest.fixture(scope="module", params=["torchscript", "onnx"])
def folder(request, tool, checkpoint, tmp_path_factory):
    if request.param == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp(request.param)
    args = ["--weights", checkpoint, "--format", request.param, "--output", str(folder)]
    assert tool(args) == 0
    return folder


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor(checkpoint)


@pytest.fixture(scope="module")
def run(folder):
    return load(folder)


@pytest.mark.parametrize("size", SIZES)
def test_detector(predictor, run, size):
    assert check_detector(predictor, run, random_image(size)) == 12


def test_image_without_detections(predictor, run):
    """An image of the mean color has features without contrast, and low scores."""
    image = np.full((3, 90, 70), 127, dtype=np.uint8)
    assert check_detector(predictor, run, image) == 0


@pytest.mark.parametrize("number", NUM_BOXES)
@pytest.mark.parametrize("size", SIZES)
def test_masks_of_boxes(predictor, run, size, number):
    check_box_masks(predictor, run, random_image(size), number)


def test_description(predictor, folder):
    about = json.loads((folder / "model.json").read_text())
    assert about["class_names"] == list(predictor.class_names)
    assert about["base"] == list(predictor.base) and about["novel"] == list(predictor.novel)
    assert about["thresholds"]["score"] == 0.085
    assert about["preprocessing"]["in_the_graph"]["size_divisibility"] == 8
    assert sorted(x.name for x in folder.iterdir()) == sorted(
        ["model.json", *(x["file"] for x in about["models"].values())]
    )


def test_training_is_left_behind(predictor, folder):
    content = (folder / "detector.pt").read_bytes() if (folder / "detector.pt").exists() else b""
    content += b"".join(x.read_bytes() for x in folder.glob("*.onnx"))
    assert predictor.model.roi_heads.self_training is not None
    assert b"mask_head" in content
    for name in (b"projector", b"teacher", b"self_training"):
        assert name not in content


def test_demo(predictor, folder, tmp_path, checkpoint):
    if folder.name.startswith("torchscript"):
        pytest.skip("the demo is for ONNX")
    demo = runpy.run_path(str(small_model.ROOT / "demo" / "onnx_demo.py"))
    image = Image.fromarray(random_image((90, 130)).transpose(1, 2, 0))
    boxes, scores, names, masks = demo["predict"](folder, image)
    expected = predictor(np.asarray(image))
    np.testing.assert_allclose(boxes, expected.pred_boxes.tensor, atol=0.01)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-4)
    assert names == [predictor.class_names[i] for i in expected.pred_classes]
    assert (np.stack(masks) != expected.pred_masks.numpy()).mean() < 1e-3
    assert 0.01 < expected.pred_masks.float().mean() < 0.9
    box = [11.5, -3.0, 97.0, 60.25]
    *_, masks = demo["predict"](folder, image, box, "star")
    (result,) = predictor.masks_for_boxes(np.asarray(image), [box], "star", rle=False)
    assert (masks[0] != result.mask).mean() < 1e-3 and result.mask.any()


def test_demo_resizes_like_opencv():
    """Pillow's affine transform does not smooth; it differs from OpenCV by rounding."""
    demo = runpy.run_path(str(small_model.ROOT / "demo" / "onnx_demo.py"))
    pixels = random_image((123, 77)).transpose(1, 2, 0)
    for size in ((50, 80), (200, 301)):
        expected = cv2.resize(pixels, size).astype(int)
        found = np.asarray(demo["sample"](Image.fromarray(pixels), size, (0, 0, 77, 123)))
        assert np.abs(found - expected).max() <= 1


@torch.no_grad()
def test_efficientnet_lite_with_fixed_padding():
    backbone = EfficientNetLite(["stage2", "stage5"]).eval()
    fixed = backbone.with_fixed_padding()
    for size in ((64, 96), (32, 160)):
        image = torch.rand(1, 3, *size)
        for name, x in backbone(image).items():
            assert torch.equal(x, fixed(image)[name])


def test_messages(tool, checkpoint, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"
    args = ["--weights", checkpoint, "--output", str(output)]
    with pytest.raises(SystemExit):
        tool([*args, "--format", "caffe2"])
    assert "onnx" in capsys.readouterr().err
    with pytest.raises(ValueError, match="caffe2.*torchscript"):
        export_model(None, str(output), "caffe2")
    weights = tmp_path / "weights.pth"
    torch.save({"model": torch.load(checkpoint, weights_only=True)["model"]}, weights)
    monkeypatch.setattr("contrastmask.export.writing.find_spec", lambda name: None)
    for arguments, expected in (
        (["--weights", str(weights), "--output", str(output)], "config"),
        (args, "pip install onnx onnxscript"),
        ([*args, "--format", "torchscript", "MODEL.MASK_ON", "False"], "MODEL.MASK_ON"),
    ):
        assert tool(arguments) == 1
        error = capsys.readouterr().err
        assert expected in error and len(error.splitlines()) == 1
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "R_50"])
def test_whole_configs(name, tmp_path):
    config = {
        "quickstart": "quickstart.yaml",
        "R_50": "COCO/contrastmask_R_50_FPN_1x_voc2nonvoc.yaml",
    }[name]
    names = str([f"class {i}" for i in range(14)])
    opts = {
        "quickstart": [
            *("DATASETS.CLASS_NAMES", names, "DATASETS.BASE_CLASSES", "['class 3']"),
            *("MODEL.ROI_MASK_HEAD.LOGIT_INIT_STD", "0.05"),
        ],
        "R_50": [
            *("MODEL.RPN.POST_NMS_TOPK_TEST", "60", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.02"),
            *("MODEL.ROI_MASK_HEAD.LOGIT_INIT_STD", "0.3", "TEST.DETECTIONS_PER_IMAGE", "20"),
        ],
    }[name]
    opts += ["MODEL.DEVICE", "cpu"]
    predictor = random_predictor(config, opts, tmp_path)
    check_onnx(predictor, tmp_path / "onnx")


def random_predictor(config, opts, folder):
    cfg = get_config(config, opts)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES or 14
    state_dict = build_model(cfg).state_dict()
    for name, value in state_dict.items():
        if name.endswith("conv3.norm.weight"):  # or features of a random ResNet are huge
            value.fill_(0.2)
    torch.save({"model": state_dict}, folder / "weights.pth")
    return Predictor(config, str(folder / "weights.pth"), opts=opts)
