"""
Box head with separate branches for classes and boxes, and its predictor. The classification branch
keeps its spatial feature map, from which class activation maps are read.
"""

from typing import NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor, nn

from .layers import build_conv_stack, conv_stack_width
from .published_rules import build_box2box_transform


class BoxFeatures(NamedTuple):
    """
    class_map (Tensor): (R, C, H, W), output of the classification branch.
    class_vector (Tensor): (R, C), its mean over positions.
    box_vector (Tensor): (R, C), mean over positions of the regression branch's output.
    """

    class_map: Tensor
    class_vector: Tensor
    box_vector: Tensor


@ROI_BOX_HEAD_REGISTRY.register()
class ContrastMaskBoxHead(nn.Module):
    """Shared convolutions, then one branch for classes and one for boxes (authors' code)."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_conv: int,
        num_cls_conv: int,
        num_reg_conv: int,
        conv_dim: int,
        norm: str = "",
    ):
        """
        Args:
            input_shape (ShapeSpec): shape of the RoI features.
            num_conv (int): number of shared 3x3 convolutions.
            num_cls_conv, num_reg_conv (int): numbers of further 3x3 convolutions of the branches.
            conv_dim (int): channels of every convolution.
            norm (str): Detectron2 norm name or "".
        """
        super().__init__()
        self.shared = build_conv_stack(input_shape.channels, conv_dim, num_conv, norm)
        channels = conv_stack_width(input_shape.channels, conv_dim, num_conv)
        self.cls_branch = build_conv_stack(channels, conv_dim, num_cls_conv, norm)
        self.reg_branch = build_conv_stack(channels, conv_dim, num_reg_conv, norm)
        cls_channels = conv_stack_width(channels, conv_dim, num_cls_conv)
        reg_channels = conv_stack_width(channels, conv_dim, num_reg_conv)
        if cls_channels != reg_channels:
            raise ValueError(
                f"the class branch of the box head ends with {cls_channels} channels, the box "
                f"branch with {reg_channels}: MODEL.ROI_BOX_HEAD.NUM_CLS_CONV and NUM_REG_CONV "
                "have to be both above 0, or NUM_CONV"
            )
        self.output_shape = ShapeSpec(channels=cls_channels)  # of the pooled vectors

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "num_conv": head.NUM_CONV,
            "num_cls_conv": head.NUM_CLS_CONV,
            "num_reg_conv": head.NUM_REG_CONV,
            "conv_dim": head.CONV_DIM,
            "norm": head.NORM,
        }

    def forward(self, x: Tensor) -> BoxFeatures:
        """
        Args:
            x (Tensor): (R, C, H, W) RoI features.

        Returns:
            BoxFeatures
        """
        x = self.shared(x)
        class_map = self.cls_branch(x)
        return BoxFeatures(
            class_map, class_map.mean(dim=(2, 3)), self.reg_branch(x).mean(dim=(2, 3))
        )


class ContrastMaskBoxPredictor(FastRCNNOutputLayers):
    """Detectron2's predictor with one input for classes and one for boxes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for layer in (self.cls_score, self.bbox_pred):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        weights = cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
        ret["box2box_transform"] = build_box2box_transform(cfg, weights)
        return ret

    def forward(self, x: BoxFeatures) -> tuple[Tensor, Tensor]:
        """
        Args:
            x (BoxFeatures):

        Returns:
            tuple[Tensor, Tensor]: scores (R, K + 1) and box deltas (R, 4K), or (R, 4) for
            class-agnostic boxes.
        """
        return self.cls_score(x.class_vector), self.bbox_pred(x.box_vector)

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """
        See :meth:`FastRCNNOutputLayers.inference`. The returned indices count all proposals of an
        image; Detectron2's own leave out those with an infinite or NaN prediction.
        """
        boxes = self.predict_boxes(predictions, proposals)
        scores = self.predict_probs(predictions, proposals)
        instances, kept = fast_rcnn_inference(
            boxes,
            scores,
            [x.image_size for x in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )
        finite = [torch.isfinite(cat([b, s], dim=1)).all(dim=1) for b, s in zip(boxes, scores)]
        return instances, [f.nonzero()[:, 0][k] for f, k in zip(finite, kept)]
