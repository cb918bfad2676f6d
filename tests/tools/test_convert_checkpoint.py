import importlib.util
import logging
import pickle

import numpy as np
import pytest
import small_model
import torch

from contrastmask import Predictor

CONFIG = "configs/COCO/contrastmask_R_50_FPN_1x_voc2nonvoc.yaml"
NARROW = (
    "MODEL.RESNETS.STEM_OUT_CHANNELS 4 MODEL.RESNETS.RES2_OUT_CHANNELS 8 "
    "MODEL.RESNETS.WIDTH_PER_GROUP 4 MODEL.FPN.OUT_CHANNELS 8 MODEL.ROI_BOX_HEAD.CONV_DIM 6 "
    "MODEL.ROI_MASK_HEAD.CONV_DIM 6 MODEL.ROI_CONTRASTIVE_HEAD.CONV_DIM 6 "
    "MODEL.ROI_CONTRASTIVE_HEAD.PROJECTOR_DIM 6 MODEL.DEVICE cpu"
).split()


@pytest.fixture(scope="module")
def tool():
    path = "tools/convert_checkpoint.py"
    spec = importlib.util.spec_from_file_location("convert_checkpoint", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def resnet(tmp_path):
    """Path of a checkpoint with the names of a tiny torchvision ResNet-50, and its tensors."""
    from detectron2.modeling import build_backbone

    from contrastmask.engine import load_config

    backbone = build_backbone(load_config(CONFIG, NARROW)).bottom_up
    state_dict = {}
    for name, value in backbone.state_dict().items():
        stage, _, rest = name.partition(".")
        name = f"layer{int(stage[3]) - 1}.{rest}" if stage.startswith("res") else rest
        for k in "123":
            name = name.replace(f"conv{k}.norm.", f"bn{k}.")
        name = name.replace("shortcut.norm.", "downsample.1.")
        name = name.replace("shortcut.", "downsample.0.")
        state_dict[name] = torch.rand(value.shape) if value.is_floating_point() else value
    torch.save({**state_dict, "fc.weight": torch.ones(2, 3)}, tmp_path / "resnet.pth")
    return tmp_path / "resnet.pth", state_dict


def test_converted_file_loads_in_detectron2(tool, resnet, tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    from contrastmask.engine import load_config

    path, state_dict = resnet
    tool.main([str(path), str(tmp_path / "out.pth"), "--config-file", CONFIG, *NARROW])
    model = build_model(load_config(CONFIG, NARROW))
    DetectionCheckpointer(model).load(str(tmp_path / "out.pth"))
    net = model.backbone.bottom_up
    assert torch.equal(net.stem.conv1.weight, state_dict["conv1.weight"])
    assert torch.equal(net.res4[5].conv2.norm.bias, state_dict["layer3.5.bn2.bias"])
    assert torch.equal(net.res3[0].shortcut.norm.weight, state_dict["layer2.0.downsample.1.weight"])


def test_what_does_not_fit_is_not_written(tool, resnet, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # handlers of other tests are closed
    path, _ = resnet
    out = tmp_path / "out.pth"
    opts = [*NARROW, "MODEL.RESNETS.DEPTH", "101"]
    assert tool.main([str(path), str(out), "--config-file", CONFIG, "--opts", *opts]) == 1
    error = capsys.readouterr().err
    assert "resnet.pth" in error and "res4." in error
    assert len(error.splitlines()) == 1
    assert not out.exists()
    assert tool.main([str(path), str(path)]) == 1 and path.exists()
    assert "same file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main([str(path), str(tmp_path / "out.pkl")])


def test_objects_are_left_out(tool, tmp_path):
    torch.save({"model": {"a": torch.ones(2)}, "path": tmp_path}, tmp_path / "a.pth")
    arrays = {"model": {"a": np.ones(2)}, "__author__": "x", "path": tmp_path}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays))
    out = tmp_path / "out.pth"
    for name in ("a.pth", "a.pkl"):
        assert tool.main([str(tmp_path / name), str(out)]) == 0
        assert torch.load(out, weights_only=True)["model"].keys() == {"a"}
        out.unlink()


@pytest.fixture
def detector(tmp_path):
    """Path of weights of a small detector, without anything else, and options of its config."""
    small_model.write_odd_data(tmp_path)
    opts = small_model.options(tmp_path, f"convert_{tmp_path.name}")
    small_model.write_weights(tmp_path / "weights.pth", opts)
    return tmp_path / "weights.pth", [*opts, "DATASETS.BASE_CLASSES", "['star', 'ring']"]


def test_detector_with_a_config_describes_itself(tool, detector, tmp_path):
    path, opts = detector
    out = str(tmp_path / "out.pth")
    config = ["--config-file", small_model.CONFIG_FILE]
    assert tool.main([str(path), out, *config, *opts]) == 0
    predictor = Predictor(out)
    by_id = sorted(small_model.IDS, key=small_model.IDS.get)
    assert predictor.class_names == tuple(by_id)
    assert predictor.base == tuple(x for x in by_id if x in ("star", "ring"))
    assert predictor.cfg.MODEL.FPN.OUT_CHANNELS == 32
    # The description stays without a config, and the source may also name the classes.
    assert tool.main([out, str(tmp_path / "again.pth")]) == 0
    assert Predictor(str(tmp_path / "again.pth")).base == predictor.base
    (tmp_path / "annotations" / "train.json").unlink()
    names = [f"{i}" for i in range(14)]
    opts = [*opts, "DATASETS.BASE_CLASSES", "['5']", "DATASETS.CLASS_NAMES", str(names)]
    assert tool.main([str(path), out, *config, *opts]) == 0
    assert Predictor(out).class_names == tuple(names) and Predictor(out).base == ("5",)


def test_classes_that_nobody_knows(tool, detector, tmp_path, capsys):
    path, _ = detector
    (tmp_path / "annotations" / "train.json").unlink()
    opts = small_model.options(tmp_path, f"gone_{tmp_path.name}")
    out = tmp_path / "out.pth"
    assert tool.main([str(path), str(out), "--config-file", small_model.CONFIG_FILE, *opts]) == 1
    assert "train.json" in capsys.readouterr().err and not out.exists()
    assert tool.main([str(path), str(out)]) == 0  # works without a config
    assert set(torch.load(out, weights_only=True)) == {"model"}


def test_classes_of_coco_need_no_data(tool, tmp_path):
    from detectron2.modeling import build_model

    from contrastmask.engine import load_config

    cfg = load_config(CONFIG, NARROW)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "coco.pth")
    out = str(tmp_path / "out.pth")
    assert tool.main([str(tmp_path / "coco.pth"), out, "--config-file", CONFIG, *NARROW]) == 0
    description = torch.load(out, weights_only=True)["contrastmask"]
    assert len(description["class_names"]) == 80 and len(description["base"]) == 20
    assert description["base"][0] == "person" and "toaster" in description["novel"]


def test_names_that_detectron2_matches(tool, tmp_path):
    """A converted file loads like the file itself."""
    from detectron2.modeling import build_model

    from contrastmask.checkpoint import ContrastMaskCheckpointer
    from contrastmask.engine import load_config

    torchvision, caffe2 = torch.rand(4, 4, 1, 1), torch.rand(4, 8, 1, 1)
    content = {"model": {"res2.0.conv1.weight": torchvision.numpy()}, "matching_heuristics": True}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"res2_1_branch2a_w": caffe2.numpy()}))
    model = build_model(load_config(CONFIG, NARROW))
    for name in ("a.pkl", "b.pkl"):
        tool.main([str(tmp_path / name), str(tmp_path / "out.pth")])
        ContrastMaskCheckpointer(model).load(str(tmp_path / "out.pth"))
    res2 = model.backbone.bottom_up.res2
    assert torch.equal(res2[0].conv1.weight, torchvision)
    assert torch.equal(res2[1].conv1.weight, caffe2)
