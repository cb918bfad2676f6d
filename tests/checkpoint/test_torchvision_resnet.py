import logging

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.file_io import PathManager
from torchvision.models.resnet import Bottleneck, ResNet

from contrastmask.checkpoint.handlers import weights_url

# Depth -> blocks of the four stages
BLOCKS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}


def features_of(net, x):
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    features = {}
    for k in range(4):
        x = getattr(net, f"layer{k + 1}")(x)
        features[f"res{k + 2}"] = x
    return features


@pytest.mark.parametrize("depth, groups, width", [(50, 1, 8), (101, 1, 8), (50, 4, 4)])
def test_features_are_the_same(narrow_cfg, load, tmp_path, depth, groups, width):
    net = ResNet(Bottleneck, BLOCKS[depth], groups=groups, width_per_group=width).eval()
    for name, value in net.state_dict().items():
        if ".bn" in name and value.is_floating_point():
            value.copy_(0.5 + torch.rand_like(value))
    cfg = narrow_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NUM_GROUPS = groups
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = width
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256
    model = torch.nn.Module()
    model.backbone = build_backbone(cfg)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    load(model, tmp_path / "a.pth")

    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, got = features_of(net, x), model.eval().backbone.bottom_up(x)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)


def test_log_and_wrong_depth(narrow_cfg, load, tmp_path, caplog):
    net = ResNet(Bottleneck, BLOCKS[50], width_per_group=8)
    # As data parallel training leaves it.
    state_dict = {f"module.{k}": v for k, v in net.state_dict().items()}
    torch.save({"epoch": 90, "state_dict": state_dict}, tmp_path / "a.pth")
    widths = ["MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.STEM_OUT_CHANNELS", 64]
    widths += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 256]
    with caplog.at_level(logging.INFO):
        load(build_model(narrow_cfg(*widths)), tmp_path / "a.pth")
    assert "has the layout torchvision ResNet" in caplog.text
    assert "It has backbone.bottom_up; other parts start untrained" in caplog.text
    assert not [x for x in caplog.records if x.levelno > logging.INFO]  # nothing to act on
    with pytest.raises(ValueError, match=r"a\.pth.*res4\.6\."):
        load(build_model(narrow_cfg(*widths, "MODEL.RESNETS.DEPTH", 101)), tmp_path / "a.pth")


def test_names_of_weights(tmp_path, monkeypatch):
    assert weights_url("torchvision://resnet50").endswith("resnet50-0676ba61.pth")
    assert weights_url("torchvision://resnext101_32x8d").endswith("resnext101_32x8d-8ba56ff5.pth")
    for name in ("resnet51", "vgg16"):
        with pytest.raises(FileNotFoundError, match=f"{name}.*resnext50_32x4d"):
            weights_url(f"torchvision://{name}")
    asked = []
    original = PathManager.get_local_path

    def get_local_path(path, *args, **kwargs):
        if path.startswith("http"):
            asked.append(path)
            return str(tmp_path / "cached.pth")
        return original(path, *args, **kwargs)

    monkeypatch.setattr(PathManager, "get_local_path", get_local_path)
    assert PathManager.get_local_path("torchvision://resnet50") == str(tmp_path / "cached.pth")
    assert asked == [weights_url("torchvision://resnet50")]
