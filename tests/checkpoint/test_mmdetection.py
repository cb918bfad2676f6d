import logging
import os
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from exported_model import check_onnx

from contrastmask import Predictor
from contrastmask.checkpoint import ContrastMaskCheckpointer, read_tensors, read_weights
from contrastmask.checkpoint.layouts import LAYOUTS

MMDETECTION = LAYOUTS[0]
BACKBONES = {
    "R-50": ("MODEL.RESNETS.DEPTH", 50),
    "R-101": ("MODEL.RESNETS.DEPTH", 101),
    "X-50": ("MODEL.RESNETS.NUM_GROUPS", 4, "MODEL.RESNETS.WIDTH_PER_GROUP", 2),
}

# What `narrow_cfg` sets, and what gives a random model many detections.
EXPORTED = (
    "MODEL.DEVICE cpu MODEL.RESNETS.STEM_OUT_CHANNELS 4 MODEL.RESNETS.RES2_OUT_CHANNELS 8 "
    "MODEL.RESNETS.WIDTH_PER_GROUP 4 MODEL.FPN.OUT_CHANNELS 8 MODEL.ROI_HEADS.NUM_CLASSES 3 "
    "MODEL.ROI_BOX_HEAD.CONV_DIM 6 MODEL.ROI_MASK_HEAD.CONV_DIM 6 "
    "MODEL.ROI_CONTRASTIVE_HEAD.CONV_DIM 6 MODEL.ROI_CONTRASTIVE_HEAD.PROJECTOR_DIM 6 "
    "MODEL.RPN.POST_NMS_TOPK_TEST 60 DATASETS.CLASS_NAMES ['a','b','c'] "
    "DATASETS.BASE_CLASSES ['b']"
).split()


def assert_same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_round_trip(build_narrow, official_state_dict, load, tmp_path, backbone):
    source, target = (build_narrow(*BACKBONES[backbone]) for _ in range(2))
    state_dict = official_state_dict(source)
    meta = {"mmdet_version": "2.14.0", "epoch": 12, "CLASSES": ("a", "b", "c")}
    torch.save({"meta": meta, "state_dict": state_dict}, tmp_path / "a.pth")
    load(target, tmp_path / "a.pth", require_all=True)
    assert_same_weights(source, target)


def test_every_tensor_is_logged(build_narrow, official_state_dict, load, tmp_path, caplog):
    opts = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.NORM", "FrozenBN"]
    model = build_narrow(*opts)
    state_dict = official_state_dict(model)
    state_dict["roi_head.bbox_head.extra.weight"] = torch.zeros(2)
    for name in ("weight", "bias"):
        del state_dict[f"roi_head.mask_head.fuseconv.{name}"]
    torch.save({"meta": {}, "state_dict": state_dict}, tmp_path / "a.pth")
    with caplog.at_level(logging.INFO):
        load(model, tmp_path / "a.pth")
    assert "MMDetection detector" in caplog.text
    assert "roi_head.bbox_head.extra" in caplog.text
    assert "roi_heads.mask_head.fuse" in caplog.text
    assert "num_batches_tracked" not in caplog.text


def test_half_precision_becomes_float32():
    state_dict = {"backbone.conv1.weight": torch.ones(2).half(), "x": torch.tensor(3)}
    converted = MMDETECTION.convert(state_dict)
    assert converted["backbone.bottom_up.stem.conv1.weight"].dtype == torch.float32
    assert converted["x"].dtype == torch.int64


def test_two_tensors_with_one_name():
    names = ("roi_head.mask_head.contrastive_head.projector.2.bias",) * 2
    state_dict = {names[0]: torch.ones(1), names[1].replace("2.", "3."): torch.ones(1)}
    with pytest.raises(ValueError, match="two tensors.*projector.linear.bias"):
        MMDETECTION.convert(state_dict)


def test_old_versions_are_refused(build_narrow, official_state_dict, load, tmp_path):
    model = build_narrow()
    state_dict = official_state_dict(model)
    torch.save({"meta": {"mmdet_version": "1.2.0"}, "state_dict": state_dict}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth.*MMDetection 1\.2\.0"):
        load(model, tmp_path / "a.pth")


def test_wrong_depth_is_an_error(build_narrow, official_state_dict, load, tmp_path):
    deep, shallow = build_narrow("MODEL.RESNETS.DEPTH", 101), build_narrow()
    torch.save({"state_dict": official_state_dict(shallow)}, tmp_path / "50.pth")
    with pytest.raises(ValueError, match=r"50\.pth.*tensors of the model.*res4\.6\."):
        load(deep, tmp_path / "50.pth")
    torch.save({"state_dict": official_state_dict(deep)}, tmp_path / "101.pth")
    with pytest.raises(ValueError, match=r"101\.pth.*no place.*res4\.6\."):
        load(shallow, tmp_path / "101.pth")


def test_heads_may_be_missing_in_training(build_narrow, official_state_dict, load, tmp_path):
    source, target = build_narrow(), build_narrow()
    state_dict = official_state_dict(source)
    state_dict = {k: v for k, v in state_dict.items() if "contrastive_head" not in k}
    torch.save({"state_dict": state_dict}, tmp_path / "a.pth")
    before = target.roi_heads.contrastive_head.encoder.conv1.weight.clone()
    load(target, tmp_path / "a.pth")
    assert torch.equal(before, target.roi_heads.contrastive_head.encoder.conv1.weight)
    with pytest.raises(ValueError, match=r"a\.pth.*contrastive_head"):
        load(target, tmp_path / "a.pth", require_all=True)


@pytest.fixture
def mmengine(monkeypatch):
    """Modules with the classes of MMDetection 3 checkpoints; `undo` makes them missing again."""
    history, config, evil = (
        types.ModuleType(name)
        for name in ("mmengine.logging.history_buffer", "mmengine.config", "mmdet.evil")
    )

    class HistoryBuffer:
        def __init__(self, values):
            self._log_history = np.array(values)
            self._statistics = {"mean": self.mean}

        def mean(self):
            return self._log_history.mean()

    class ConfigDict(dict):
        pass

    def run(path):
        os.mkdir(path)
        return {}

    for module, content in ((history, HistoryBuffer), (config, ConfigDict), (evil, run)):
        content.__module__, content.__qualname__ = module.__name__, content.__name__
        setattr(module, content.__name__, content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for package in ("mmengine", "mmengine.logging", "mmdet"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    return SimpleNamespace(buffer=HistoryBuffer, config=ConfigDict, run=run, undo=monkeypatch.undo)


class RunWhenLoaded:
    def __init__(self, function, path):
        self.call = function, (str(path),)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "as published"])
def test_mmdetection_3(build_narrow, official_state_dict, mmengine, tmp_path, zipped):
    """With objects of packages that are missing, and of which nothing is run."""
    source, target = build_narrow(), build_narrow()
    path, trace = str(tmp_path / "a.pth"), tmp_path / "trace"
    content = {
        "meta": {"mmengine_version": "0.10.4", "cfg": mmengine.config(lr=0.02), "epoch": 12},
        "state_dict": official_state_dict(source),
        "message_hub": {"log_scalars": {"train/loss": mmengine.buffer([3.0, 2.0])}},
        "evil": [RunWhenLoaded(mmengine.run, trace), RunWhenLoaded(os.mkdir, trace)],
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    mmengine.undo()
    with pytest.raises(ValueError, match=r"a\.pth.*objects.*tools/convert_checkpoint"):
        ContrastMaskCheckpointer(target).load(path)
    ContrastMaskCheckpointer(target, require_all=True, read=read_tensors).load(path)
    assert_same_weights(source, target)

    converted, layout = read_weights(path)
    assert layout is MMDETECTION and converted.keys() == {"model"}
    torch.save(converted, tmp_path / "b.pth")
    target = build_narrow()
    DetectionCheckpointer(target).load(str(tmp_path / "b.pth"))
    assert_same_weights(source, target)
    assert not trace.exists(), "code of the file was run"


@pytest.mark.slow
def test_exports_like_its_model(narrow_cfg, official_state_dict, tmp_path):
    state_dict = official_state_dict(build_model(narrow_cfg()))
    for name, value in state_dict.items():
        if name.endswith("bn3.weight"):  # or features of a random ResNet are huge
            value.fill_(0.2)
    torch.save({"state_dict": state_dict}, tmp_path / "official.pth")
    predictor = Predictor("COCO/Base-Published.yaml", str(tmp_path / "official.pth"), opts=EXPORTED)
    check_onnx(predictor, tmp_path / "onnx")
