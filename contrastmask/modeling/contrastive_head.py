"""
The contrastive head (Sec. 3.3): an encoder whose features enhance the mask head, and a projector
whose output the contrastive loss compares. The projector is for training only.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import nn

from .contrastive_loss import LOSS_FORMS, query_sharing_loss
from .conv_stack import build_conv_stack
from .pixel_sets import build_pixel_sets, sample_keys
from .precision import full_precision


class Projector(nn.Module):
    """Per-pixel layers: 1x1 convolutions with norm and ReLU, then one linear layer."""

    def __init__(self, in_channels, dim, num_conv, norm):
        """
        Args:
            in_channels (int): channels of the input.
            dim (int): channels of all layers.
            num_conv (int): number of 1x1 convolutions.
            norm (str): their normalisation, a Detectron2 norm name or "".
        """
        super().__init__()
        self.convs = build_conv_stack(in_channels, dim, num_conv, norm, kernel_size=1)
        self.linear = nn.Linear(dim if num_conv else in_channels, dim)

    def forward(self, x):
        """
        Args:
            x (Tensor): (R, C, H, W).

        Returns:
            Tensor: (R, H, W, D).
        """
        return self.linear(self.convs(x).permute(0, 2, 3, 1))


class ContrastiveHead(nn.Module):
    """Encoder, projector and loss of the contrastive branch."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_conv,
        conv_dim,
        norm="",
        num_projector_conv,
        projector_dim,
        projector_norm,
        loss_weight,
        loss_form,
        temperature_easy,
        temperature_hard,
        sample_fraction,
        pixel_set_params,
    ):
        """
        Args:
            input_shape (ShapeSpec): shape of the RoI features.
            num_conv, conv_dim, norm: of the encoder.
            num_projector_conv, projector_dim, projector_norm: of the projector.
            loss_weight (float): 0 leaves out the projector and the loss.
            loss_form (str), temperature_easy (float), temperature_hard (float): of the loss.
            sample_fraction (float): fraction of each key set that is sampled.
            pixel_set_params (dict): keyword arguments of :func:`build_pixel_sets`.

        Raises:
            ValueError: for a loss form or a fraction that does not exist.
        """
        super().__init__()
        if loss_form not in LOSS_FORMS:
            raise ValueError(
                f"MODEL.ROI_CONTRASTIVE_HEAD.LOSS_FORM is {loss_form!r}, choose from {LOSS_FORMS}"
            )
        if not 0 < sample_fraction <= 1:
            raise ValueError(
                "MODEL.ROI_CONTRASTIVE_HEAD.SAMPLE_FRACTION has to be above 0 and at most 1, "
                f"not {sample_fraction}"
            )
        self.loss_weight = loss_weight
        self.loss_form = loss_form
        self.temperature_easy = temperature_easy
        self.temperature_hard = temperature_hard
        self.sample_fraction = sample_fraction
        self.pixel_set_params = pixel_set_params

        self.encoder = build_conv_stack(input_shape.channels, conv_dim, num_conv, norm)
        channels = conv_dim if num_conv else input_shape.channels
        self.output_shape = ShapeSpec(
            channels=channels, height=input_shape.height, width=input_shape.width
        )
        self.projector = (
            Projector(channels, projector_dim, num_projector_conv, projector_norm)
            if loss_weight > 0
            else None
        )

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = cfg.MODEL.ROI_CONTRASTIVE_HEAD
        return {
            "input_shape": input_shape,
            "num_conv": head.NUM_CONV,
            "conv_dim": head.CONV_DIM,
            "norm": head.NORM,
            "num_projector_conv": head.NUM_PROJECTOR_CONV,
            "projector_dim": head.PROJECTOR_DIM,
            "projector_norm": head.PROJECTOR_NORM,
            "loss_weight": head.LOSS_WEIGHT,
            "loss_form": head.LOSS_FORM,
            "temperature_easy": head.TEMPERATURE_EASY,
            "temperature_hard": head.TEMPERATURE_HARD,
            "sample_fraction": head.SAMPLE_FRACTION,
            "pixel_set_params": {
                "delta": head.DELTA,
                "fallback_delta": head.FALLBACK_DELTA,
                "min_query_size": head.MIN_QUERY_SIZE,
                "ring_width": head.RING_WIDTH,
                "min_set_size": head.MIN_SET_SIZE,
            },
        }

    @property
    def has_loss(self):
        """bool: whether the head has a projector and a loss."""
        return self.projector is not None

    def forward(self, x):
        """
        Args:
            x (Tensor): (R, C, H, W) RoI features; detached from the backbone by the caller.

        Returns:
            Tensor: (R, conv_dim, H, W), the encoder's output.
        """
        return self.encoder(x)

    def contrast(self, encoded, masks, has_mask, cam):
        """
        Contrastive loss over all positive RoIs of the batch, before its weight.

        Args:
            encoded (Tensor): (R, conv_dim, H, W), the encoder's output, R > 0.
            masks (Tensor): (R, H, W) bool, mask targets.
            has_mask (Tensor): (R,) bool, True for base RoIs.
            cam (Tensor): (R, H, W) float, CAMs normalised to 0..1; the loss does not train them.

        Returns:
            tuple[ContrastiveTerms, PixelSets, KeySets]: the terms of the loss, the pixel sets, and
            the sampled keys.
        """
        pixel_sets = build_pixel_sets(masks, has_mask, cam.detach(), **self.pixel_set_params)
        sampled = sample_keys(pixel_sets, self.sample_fraction)

        hidden = self.projector.convs(encoded).flatten(2)  # R, D, HW
        membership = torch.stack(sampled, dim=-1).flatten(1, 2)  # R, HW, 4
        rois, pixels = membership.any(dim=-1).nonzero(as_tuple=True)
        # The last layer is linear, so it runs on means and on sampled pixels only.
        keys = self.projector.linear(hidden.transpose(1, 2)[rois, pixels])
        queries = self.projector.linear(self._mean_query_features(hidden, pixel_sets))
        terms = query_sharing_loss(
            queries,
            keys,
            membership[rois, pixels],
            temperature_easy=self.temperature_easy,
            temperature_hard=self.temperature_hard,
            form=self.loss_form,
        )
        return terms, pixel_sets, sampled

    @staticmethod
    def _mean_query_features(hidden, pixel_sets):
        """
        Mean over the kept RoIs of the mean feature of each query region.

        Args:
            hidden (Tensor): (R, D, HW).
            pixel_sets (PixelSets):

        Returns:
            Tensor: (2, D) float32, foreground and background; 0 if no RoI is kept.
        """
        with full_precision(hidden):
            regions = torch.stack([pixel_sets.query_foreground, pixel_sets.query_background])
            regions = regions.flatten(2).float()  # 2, R, HW
            kept = pixel_sets.kept.float()
            weights = regions / regions.sum(dim=2, keepdim=True).clamp(min=1)
            weights = weights * (kept / kept.sum().clamp(min=1))[:, None]
            return torch.bmm(weights.transpose(0, 1), hidden.float().transpose(1, 2)).sum(dim=0)
