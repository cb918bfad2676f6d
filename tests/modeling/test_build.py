"""MODEL.FROZEN_PARTS."""

import pytest
import torch
from small_model import CONFIG_FILE
from torch import nn

from contrastmask.engine import Trainer, load_config
from contrastmask.modeling import freeze_parts


def conv_bn():
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"body": nn.ModuleDict({"one": conv_bn(), "oneself": conv_bn()}), "head": conv_bn()}
    )


def run(model):
    x = model["head"](model["body"]["oneself"](model["body"]["one"](torch.rand(2, 3, 4, 4))))
    x.square().sum().backward()


@pytest.mark.parametrize(
    "prefixes, learning",
    [
        ([], {"body.one", "body.oneself", "head"}),
        (["body.one"], {"body.oneself", "head"}),
        (["body", "head.0"], {"head.1"}),
        (["body.oneself.1.weight", "head"], {"body.one", "body.oneself"}),
    ],
)
def test_only_the_named_parts(model, prefixes, learning):
    before = {name: x.clone() for name, x in model.state_dict().items()}
    freeze_parts(model, prefixes)
    if learning:
        run(model)
    got_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    for name in got_gradient:
        assert any(name.startswith(f"{x}.") for x in learning)
    for part in learning:
        assert any(name.startswith(f"{part}.") for name in got_gradient)
    assert ("body.oneself.1.weight" in got_gradient) == (
        "body.oneself" in learning and "body.oneself.1.weight" not in prefixes
    )
    for name, value in model.state_dict().items():
        if any(name.startswith(f"{x}.") for x in prefixes):
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("prefix", ["bod", "body.on", "body.one.0.bias.x", ""])
def test_unknown_part(model, prefix):
    message = f"MODEL.FROZEN_PARTS: the model has no part '{prefix}'.*'body', 'head'"
    with pytest.raises(ValueError, match=message):
        freeze_parts(model, [prefix])


def test_trainer_builds_such_a_model():
    opts = ["MODEL.DEVICE", "cpu", "MODEL.FROZEN_PARTS", "['backbone', 'proposal_generator']"]
    model = Trainer.build_model(load_config(CONFIG_FILE, opts))
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"roi_heads"}
