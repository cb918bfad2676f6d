import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from detectron2.solver import build_optimizer

from contrastmask.modeling.backbone import StoredStatisticsBatchNorm2d


@pytest.fixture
def cfg(narrow_cfg):
    return narrow_cfg()


def norms_of(module, cls):
    return [m for m in module.modules() if type(m) is cls]


def test_statistics_stay_and_affine_parameters_learn(cfg):
    backbone = build_backbone(cfg).train()
    norms = norms_of(backbone, StoredStatisticsBatchNorm2d)
    # Stages 3 to 5 of ResNet-50: 13 blocks of three layers, and three shortcuts.
    assert len(norms) == 13 * 3 + 3
    assert len(norms_of(backbone, FrozenBatchNorm2d)) == 3 * 3 + 1 + 1
    assert not norms_of(backbone, torch.nn.BatchNorm2d)
    for norm in norms:
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    before = [n.running_mean.clone() for n in norms]
    x = torch.rand(2, 3, 64, 64)
    features = backbone(x)
    sum(f.square().mean() for f in features.values()).backward()
    for norm, mean in zip(norms, before):
        assert torch.equal(norm.running_mean, mean)
        assert norm.weight.grad.abs().sum() > 0 and norm.bias.grad.abs().sum() > 0
    for name, parameter in backbone.bottom_up.named_parameters():
        assert parameter.requires_grad == (not name.startswith(("stem.", "res2."))), name
    evaluated = backbone.eval()(x)
    for name in features:
        torch.testing.assert_close(evaluated[name], features[name])


def test_features_equal_those_of_frozen_batch_norm(cfg):
    ours = build_backbone(cfg)
    for norm in norms_of(ours, StoredStatisticsBatchNorm2d):
        torch.nn.init.uniform_(norm.weight)
        norm.running_var.uniform_(0.5, 2)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    theirs = build_backbone(cfg)
    weights = {k: v for k, v in ours.state_dict().items() if "num_batches" not in k}
    theirs.load_state_dict(weights, strict=False)
    x = torch.rand(1, 3, 64, 64)
    expected = theirs(x)
    for name, feature in ours(x).items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-4, atol=1e-4)


def test_weight_decay_of_scale_and_shift(cfg):
    backbone = build_backbone(cfg)
    decay = {}
    for group in build_optimizer(cfg, backbone).param_groups:
        decay.update((id(p), group["weight_decay"]) for p in group["params"])
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    assert len(decay) == len(parameters)
    assert {decay[id(p)] for p in parameters} == {1e-4}


def test_initial_weights_of_the_pyramid(cfg):
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    backbone = build_backbone(cfg)
    for layer in (*backbone.lateral_convs, *backbone.output_convs):
        fan = (layer.weight[0].numel(), layer.weight[:, 0].numel())
        bound = (6 / sum(fan)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


def test_other_norms_are_refused(cfg):
    cfg.MODEL.RESNETS.NORM = "GN"
    with pytest.raises(ValueError, match="MODEL.RESNETS.NORM is 'GN'"):
        build_backbone(cfg)
