"""
The contrastive head (Sec. 3.3): an encoder whose features enhance the mask head, and a projector
whose output the contrastive loss compares. The projector is for training only.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn

from .contrastive_loss import LOSS_FORMS, ContrastiveTerms, loss_ramp, query_sharing_loss
from .layers import build_conv_stack, conv_stack_width, full_precision
from .pixel_sets import KeySets, PixelSets, build_pixel_sets, sample_keys


def encoder_width(cfg: CfgNode, in_channels: int) -> int:
    """Channels of the encoder's output, for features of `in_channels` channels."""
    head = cfg.MODEL.ROI_CONTRASTIVE_HEAD
    return conv_stack_width(in_channels, head.CONV_DIM, head.NUM_CONV)


class Projector(nn.Module):
    """Per-pixel layers: 1x1 convolutions with norm and ReLU, then one linear layer."""

    def __init__(self, in_channels: int, dim: int, num_conv: int, norm: str):
        """
        Args:
            in_channels (int): channels of the input.
            dim (int): channels of all layers.
            num_conv (int): number of 1x1 convolutions.
            norm (str): their normalization, a Detectron2 norm name or "".
        """
        super().__init__()
        self.convs = build_conv_stack(in_channels, dim, num_conv, norm, kernel_size=1)
        self.linear = nn.Linear(conv_stack_width(in_channels, dim, num_conv), dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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
        num_conv: int,
        conv_dim: int,
        norm: str = "",
        num_projector_conv: int,
        projector_dim: int,
        projector_norm: str,
        loss_weight: float,
        ramp_params: dict,
        loss_form: str,
        temperature_easy: float,
        temperature_hard: float,
        sample_fraction: float,
        pixel_set_params: dict,
    ):
        """
        Args:
            input_shape (ShapeSpec): shape of the RoI features.
            num_conv, conv_dim, norm: of the encoder.
            num_projector_conv, projector_dim, projector_norm: of the projector.
            loss_weight (float): 0 leaves out the projector and the loss.
            ramp_params (dict): keyword arguments of :func:`loss_ramp`.
            loss_form (str), temperature_easy (float), temperature_hard (float): of the loss.
            sample_fraction (float): fraction of each key set that is sampled.
            pixel_set_params (dict): keyword arguments of :func:`build_pixel_sets`.

        Raises:
            ValueError: for a loss form that does not exist, and numbers out of range.
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
        loss_ramp(0, **ramp_params)  # complains about bad parameters before training
        self.loss_weight = loss_weight
        self.ramp_params = ramp_params
        self.loss_form = loss_form
        self.temperature_easy = temperature_easy
        self.temperature_hard = temperature_hard
        self.sample_fraction = sample_fraction
        self.pixel_set_params = pixel_set_params

        self.encoder = build_conv_stack(input_shape.channels, conv_dim, num_conv, norm)
        channels = conv_stack_width(input_shape.channels, conv_dim, num_conv)
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
            "ramp_params": {
                "max_iter": cfg.SOLVER.MAX_ITER,
                "start": head.RAMP_START,
                "num_steps": head.RAMP_STEPS,
                "full_step": head.RAMP_FULL_STEP,
            },
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
    def has_loss(self) -> bool:
        """bool: whether the head has a projector and a loss."""
        return self.projector is not None

    def ramp(self, iteration: int) -> float:
        """Factor of the loss weight in an iteration; see :func:`loss_ramp`."""
        return loss_ramp(iteration, **self.ramp_params)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x (Tensor): (R, C, H, W) RoI features; detached from the backbone by the caller.

        Returns:
            Tensor: (R, conv_dim, H, W), the encoder's output.
        """
        return self.encoder(x)

    def contrast(
        self,
        encoded: torch.Tensor,
        masks: torch.Tensor,
        has_mask: torch.Tensor,
        cam: torch.Tensor,
    ) -> tuple[ContrastiveTerms, PixelSets, KeySets]:
        """
        Contrastive loss over all positive RoIs of the batch, before its weight.

        Args:
            encoded (Tensor): (R, conv_dim, H, W), the encoder's output, R > 0.
            masks (Tensor): (R, H, W) bool, mask targets.
            has_mask (Tensor): (R,) bool, True for base RoIs.
            cam (Tensor): (R, H, W) float, CAMs normalized to 0..1; the loss does not train them.

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
