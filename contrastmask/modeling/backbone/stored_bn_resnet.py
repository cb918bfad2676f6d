"""ResNet and feature pyramid as the published models train them."""

from detectron2.config import CfgNode
from detectron2.layers import BatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone
from torch import nn


class StoredStatisticsBatchNorm2d(BatchNorm2d):
    """
    Batch norm that always normalizes with its stored statistics, and trains its scale and shift.
    Detectron2's FrozenBatchNorm2d does not train them.
    """

    def train(self, mode: bool = True) -> "StoredStatisticsBatchNorm2d":
        """Never uses batch statistics, whatever `mode` is."""
        return super().train(False)

    @classmethod
    def convert(cls, module: nn.Module) -> None:
        """
        Replace all BatchNorm2d below a module.

        Args:
            module (nn.Module): changed in place.
        """
        for name, child in module.named_children():
            if type(child) is BatchNorm2d:
                new = cls(child.num_features, eps=child.eps).to(child.weight.device)
                new.load_state_dict(child.state_dict())
                setattr(module, name, new.eval())
            else:
                cls.convert(child)


@BACKBONE_REGISTRY.register()
def build_stored_bn_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """
    Detectron2's ResNet (or ResNeXt) with FPN, with two differences of the published training: batch
    norm keeps its stored statistics but trains scale and shift in the stages that
    ``MODEL.BACKBONE.FREEZE_AT`` leaves unfrozen, and the FPN starts with Xavier uniform weights.

    Args:
        cfg (CfgNode): as for Detectron2's ``build_resnet_fpn_backbone``. ``MODEL.RESNETS.NORM`` has
            to be "BN".
        input_shape (ShapeSpec): of the image.

    Returns:
        FPN: levels p2 to p6.

    Raises:
        ValueError: for another norm.
    """
    if cfg.MODEL.RESNETS.NORM != "BN":
        raise ValueError(
            f"MODEL.RESNETS.NORM is {cfg.MODEL.RESNETS.NORM!r}; the backbone "
            "build_stored_bn_resnet_fpn_backbone needs 'BN'"
        )
    backbone = build_resnet_fpn_backbone(cfg, input_shape)
    StoredStatisticsBatchNorm2d.convert(backbone.bottom_up)
    for layer in (*backbone.lateral_convs, *backbone.output_convs):
        nn.init.xavier_uniform_(layer.weight)
    return backbone
