"""The ResNet of the published models, and EfficientNet-Lite."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import BatchNorm2d, FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from detectron2.solver import build_optimizer

from contrastmask.modeling.backbone import EfficientNetLite, StoredStatisticsBatchNorm2d


@pytest.fixture
def cfg(narrow_cfg):
    return narrow_cfg()


@pytest.fixture
def lite_cfg():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_efficientnet_lite_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["stage2", "stage3", "stage4", "stage5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    return cfg


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


def test_other_epsilons_are_kept():
    module = torch.nn.Sequential(BatchNorm2d(3, eps=0.5))
    StoredStatisticsBatchNorm2d.convert(module)
    assert type(module[0]) is StoredStatisticsBatchNorm2d and module[0].eps == 0.5


def test_features_of_efficientnet_lite():
    """Channels and strides as said, for sizes that are no multiple of 32; the last of a stage."""
    names = ["stage2", "stage3", "stage4", "stage5"]
    backbone = EfficientNetLite(names).eval()
    blocks = []
    for block in backbone.net._blocks:
        block.register_forward_hook(lambda *args: blocks.append(args[-1]))
    features = backbone(torch.rand(1, 3, 96, 136))
    assert list(features) == names
    for name, shape in backbone.output_shape().items():
        height, width = -(-96 // shape.stride), -(-136 // shape.stride)
        assert features[name].shape == (1, shape.channels, height, width), name
        same_size = [x for x in blocks if x.shape == features[name].shape]
        assert features[name] is same_size[-1], name
    assert not norms_of(backbone, torch.nn.BatchNorm2d)
    for name, feature in EfficientNetLite(["stage4"])(torch.rand(1, 3, 64, 96)).items():
        assert name == "stage4" and feature.shape == (1, 112, 4, 6)


def test_padding_of_efficientnet_lite_follows_the_image():
    """The same content at another place of a larger image has the same features."""
    backbone = EfficientNetLite(["stage2"]).eval()
    image = torch.rand(1, 3, 128, 160)
    (whole,) = backbone(image).values()
    (part,) = backbone(image[..., :96, :128]).values()
    torch.testing.assert_close(part[..., :16, :24], whole[..., :16, :24], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("freeze_at, frozen", [(0, 0), (1, 0), (2, 3), (3, 5), (5, 16)])
def test_frozen_stages_of_efficientnet_lite(lite_cfg, freeze_at, frozen):
    lite_cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    net = build_backbone(lite_cfg).bottom_up.net
    assert len(net._blocks) == 16
    assert net._conv_stem.weight.requires_grad == (freeze_at == 0)
    learning = [any(p.requires_grad for p in block.parameters()) for block in net._blocks]
    assert learning == [False] * frozen + [True] * (16 - frozen)


def test_pyramid_of_efficientnet_lite(lite_cfg):
    lite_cfg.MODEL.FPN.NORM = "GN"
    lite_cfg.MODEL.FPN.FUSE_TYPE = "avg"
    backbone = build_backbone(lite_cfg)
    strides = {name: x.stride for name, x in backbone.output_shape().items()}
    assert strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert len(norms_of(backbone, torch.nn.GroupNorm)) == 8
    assert backbone._fuse_type == "avg"


def test_unknown_features_of_efficientnet_lite():
    with pytest.raises(ValueError, match="stage9.*stage2"):
        EfficientNetLite(["stage3", "stage9"])
