"""
Class-agnostic mask head: RoI features, joined with the CAM and the enhanced features of the
contrastive head, become one mask per RoI.
"""

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ROIAlign, ShapeSpec
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import BitMasks, PolygonMasks
from torch import nn

from .cam import resize_map
from .contrastive_head import encoder_width
from .layers import build_conv_stack, conv_stack_width

_UPSAMPLING = 2  # of the deconvolution


@ROI_MASK_HEAD_REGISTRY.register()
class ContrastMaskMaskHead(nn.Module):
    """Fusion of the three inputs, convolutions, deconvolution, one logit per pixel (Sec. 3.4)."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_conv: int,
        conv_dim: int,
        norm: str = "",
        enhanced_dim: int | None = None,
        logit_init_std: float = 0.0,
    ):
        """
        Args:
            input_shape (ShapeSpec): shape of the RoI features.
            num_conv (int): number of 3x3 convolutions.
            conv_dim (int): their channels, and the deconvolution's.
            norm (str): Detectron2 norm name or "".
            enhanced_dim (int): channels of the enhanced features; None if there are none.
            logit_init_std (float): see ``MODEL.ROI_MASK_HEAD.LOGIT_INIT_STD``.
        """
        super().__init__()
        self.fuse = None
        if enhanced_dim is not None:
            self.fuse = Conv2d(enhanced_dim, input_shape.channels, kernel_size=1)
            weight_init.c2_msra_fill(self.fuse)

        self.convs = build_conv_stack(
            input_shape.channels, conv_dim, num_conv, norm, name="mask_fcn"
        )
        channels = conv_stack_width(input_shape.channels, conv_dim, num_conv)
        self.deconv = ConvTranspose2d(channels, conv_dim, _UPSAMPLING, stride=_UPSAMPLING)
        weight_init.c2_msra_fill(self.deconv)
        self.predictor = Conv2d(conv_dim, 1, kernel_size=1)
        weight_init.c2_msra_fill(self.predictor)
        if logit_init_std > 0:
            nn.init.normal_(self.predictor.weight, std=logit_init_std)

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = cfg.MODEL.ROI_MASK_HEAD
        if not head.CLS_AGNOSTIC_MASK:
            raise ValueError(
                f"{cls.__name__} is class-agnostic: set MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK True"
            )
        is_enhanced = cfg.MODEL.ROI_CONTRASTIVE_HEAD.ENABLED
        return {
            "input_shape": input_shape,
            "num_conv": head.NUM_CONV,
            "conv_dim": head.CONV_DIM,
            "norm": head.NORM,
            "enhanced_dim": encoder_width(cfg, input_shape.channels) if is_enhanced else None,
            "logit_init_std": head.LOGIT_INIT_STD,
        }

    @staticmethod
    def output_size(input_size: int) -> int:
        """
        Args:
            input_size (int): side of the RoI features, in cells.

        Returns:
            int: side of the predicted masks, in cells.
        """
        return _UPSAMPLING * input_size

    def forward(
        self,
        x: torch.Tensor,
        cam: torch.Tensor | None = None,
        enhanced: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            x (Tensor): (R, C, H, H) RoI features.
            cam (Tensor): (R, 1, H, H) normalized CAM, added to every channel; None for no CAM.
            enhanced (Tensor): (R, D, h, h) enhanced features of the contrastive head, of any
                resolution; given if the head was built with `enhanced_dim`.

        Returns:
            Tensor: (R, 1, 2H, 2H) mask logits.
        """
        if self.fuse is not None:
            x = x + self.fuse(resize_map(enhanced, x.shape[-1]))
        if cam is not None:
            x = x + cam.to(x.dtype)
        return self.predictor(F.relu(self.deconv(self.convs(x))))


def crop_mask_targets(
    gt_masks: BitMasks | PolygonMasks, gt_index: torch.Tensor, boxes: torch.Tensor, size: int
) -> torch.Tensor:
    """
    Crop, for each box, the mask of the ground truth it is matched to, and resize it. The result
    equals ``gt_masks[gt_index].crop_and_resize(boxes, size)`` of Detectron2 without a copy of the
    full-size mask per box.

    Args:
        gt_masks (BitMasks or PolygonMasks): the masks of one image.
        gt_index (Tensor): (R,) int64, index of a mask for each box.
        boxes (Tensor): (R, 4) float, XYXY in image pixels. One whose sides are in the wrong order
            counts as one without width or height.
        size (int): side of the targets, in cells.

    Returns:
        Tensor: (R, size, size) bool.
    """
    if not isinstance(gt_masks, BitMasks):
        return gt_masks[gt_index].crop_and_resize(boxes, size)
    low, high = boxes.split(2, dim=1)
    rois = torch.cat([gt_index.to(boxes.dtype)[:, None], low, torch.maximum(low, high)], dim=1)
    crop = ROIAlign((size, size), 1.0, 0, aligned=True)
    masks = gt_masks.tensor.to(device=boxes.device, dtype=torch.float32)
    return crop(masks[:, None], rois)[:, 0] >= 0.5


def mask_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Mean binary cross-entropy per pixel.

    Args:
        logits (Tensor): (R, 1, H, W), R > 0.
        targets (Tensor): (R, H, W) bool.

    Returns:
        Tensor: 0-dim float32.
    """
    return F.binary_cross_entropy_with_logits(logits[:, 0].float(), targets.float())


def mask_error_rates(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Pixel error rates at the threshold 0.5, as Detectron2's mask head reports them.

    Args:
        logits (Tensor): (R, 1, H, W), R > 0.
        targets (Tensor): (R, H, W) bool.

    Returns:
        dict[str, Tensor]: 0-dim tensors "accuracy", "false_positive" (among background pixels)
        and "false_negative" (among foreground pixels).
    """
    predicted = logits.detach()[:, 0] > 0
    num_positive = targets.sum()
    num_negative = targets.numel() - num_positive
    return {
        "accuracy": (predicted == targets).float().mean(),
        "false_positive": (predicted & ~targets).sum() / num_negative.clamp(min=1),
        "false_negative": (~predicted & targets).sum() / num_positive.clamp(min=1),
    }
