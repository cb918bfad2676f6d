"""
From features, boxes and CAMs to masks. One function, `MaskBranch.logits`, computes the mask logits
of training and of inference; `MaskBranch.losses` compares them. A further loss of masks is a group
of RoIs in `sampling.py`, a module with its config, and a few lines in `losses`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.layers import NaiveSyncBatchNorm, cat
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from .box_supervision import BoxSupervision
from .cam import min_max_normalize, resize_map
from .color_crf import ColorCRF
from .contrastive_head import ContrastiveHead
from .mask_head import ContrastMaskMaskHead, crop_mask_targets, mask_error_rates, mask_loss
from .monitoring import put_scalars, put_training_images
from .sampling import RoIs, TrainingRoIs
from .self_similarity import enhance_by_self_similarity
from .self_training import SelfTraining


@dataclass(frozen=True)
class MaskBranch:
    """
    The modules that predict masks, and their losses. The RoI heads own the modules and give them
    their names in checkpoints.

    in_features (list[str]): names of the feature maps that RoIs are pooled from.
    mask_pooler, mask_head: features of RoIs, and masks from them.
    contrastive_pooler, contrastive_head: None leaves a class-agnostic Mask R-CNN.
    box_supervision, self_training: mask losses of ground-truth boxes without a mask, or None.
    color_crf: what inference moves masks with, or None.
    cam_on (bool): whether the mask head receives CAMs.
    vis_period (int): store images every so many iterations; 0 for never.
    """

    in_features: Sequence[str]
    mask_pooler: ROIPooler
    mask_head: ContrastMaskMaskHead
    contrastive_pooler: ROIPooler | None
    contrastive_head: ContrastiveHead | None
    box_supervision: BoxSupervision | None
    self_training: SelfTraining | None
    color_crf: ColorCRF | None
    cam_on: bool
    vis_period: int

    @property
    def has_contrastive_loss(self) -> bool:
        """bool: whether there is a contrastive head with a loss."""
        return self.contrastive_head is not None and self.contrastive_head.has_loss

    @property
    def trains_with_cams(self) -> bool:
        """bool: whether a training step needs CAMs."""
        return self.cam_on or self.has_contrastive_loss

    def logits(
        self,
        features: dict[str, torch.Tensor],
        boxes: list[Boxes],
        cams: torch.Tensor | None,
        encoded: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            features (dict[str, Tensor]): feature maps, (N, C, H, W) each.
            boxes (list[Boxes]): boxes of each image, R > 0 in all.
            cams (Tensor): (R, 1, h, w), of any resolution; may be None if `cam_on` is False.
            encoded (Tensor): (R, D, H, W), the result of :meth:`encode` for these boxes, if known.

        Returns:
            Tensor: (R, 1, H', H') mask logits.
        """
        return self.mask_head(*self._inputs(features, boxes, cams, encoded))

    def _inputs(self, features, boxes, cams, encoded=None):
        """Inputs of the mask head, see :meth:`logits`."""
        size = self._mask_input_size
        enhanced = None
        if self.contrastive_head is not None:
            if encoded is None:
                encoded = self.encode(features, boxes)
            enhanced = enhance_by_self_similarity(encoded, size)
        cam = min_max_normalize(resize_map(cams, size)) if self.cam_on else None
        return self._pool(self.mask_pooler, features, boxes), cam, enhanced

    def encode(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """
        Args:
            features (dict[str, Tensor]): feature maps. They are detached: the contrastive head does
                not train the backbone.
            boxes (list[Boxes]): boxes of each image, R > 0 in all.

        Returns:
            Tensor: (R, D, H, W), output of the contrastive head's encoder.
        """
        features = {name: x.detach() for name, x in features.items()}
        return self.contrastive_head(self._pool(self.contrastive_pooler, features, boxes))

    def add_masks(
        self,
        features: dict[str, torch.Tensor],
        instances: list[Instances],
        rois_at_once: int,
        images: ImageList | None,
    ) -> None:
        """
        Inference: give instances their `pred_masks` (R, 1, H, W), probabilities in 0..1.

        Args:
            features (dict[str, Tensor]): feature maps.
            instances (list[Instances]): with `pred_boxes` and `pred_cams`; changed in place.
            rois_at_once (int): the branch runs on at most this many RoIs, which bounds its memory.
            images (ImageList): N, the normalized batch; only `color_crf` needs it.
        """
        cams = cat([x.pred_cams for x in instances])[:, None]
        boxes = [x.pred_boxes.tensor for x in instances]
        side = self.mask_head.output_size(self._mask_input_size)
        logits = []
        for start in range(0, len(cams), rois_at_once):
            end = start + rois_at_once
            chunk = _slice_box_lists(boxes, start, end)
            logits.append(self.logits(features, chunk, cams[start:end]))
            if self.color_crf is not None:
                refined = self.color_crf(logits[-1][:, 0], images, chunk, is_quick=True)
                logits[-1] = refined[:, None]
        logits = cat(logits) if logits else cams.new_zeros(0, 1, side, side)
        mask_rcnn_inference(logits, instances)

    def losses(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        rois: TrainingRoIs,
        cams: torch.Tensor | None,
        targets: list[Instances],
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            images (ImageList): the batch.
            features (dict[str, Tensor]): feature maps.
            rois (TrainingRoIs): the groups R, M, S and T, see `sampling.py`.
            cams (Tensor): (R, 1, h, w), of the positive RoIs; None if there are none, or nothing
                uses them.
            targets (list[Instances]): ground truth with masks.

        Returns:
            dict[str, Tensor]: "loss_mask", and "loss_contrastive", "loss_box_supervision" and
            "loss_self_training" if they are on. Every parameter that learns gets a gradient, zero
            where nothing is learned.
        """
        losses = {}
        iteration = get_event_storage().iter
        if self.self_training is not None:
            self.self_training.update_teacher(self.mask_head, iteration)
        scalars = {
            "mask_head/num_rois": len(rois.with_mask),
            "contrastive/num_rois": len(rois.positive),
        }
        encoded = sampled = logits = None
        if self.has_contrastive_loss and len(rois.positive):
            encoded = self.encode(features, rois.positive.boxes)
            masks = crop_targets(rois.positive, targets, encoded.shape[-1])
            losses["loss_contrastive"], sampled, numbers = self._contrastive_loss(
                encoded, cams, rois.positive.has_mask, masks
            )
            scalars.update(numbers)
            encoded = encoded[rois.supervised.index]
        if len(rois.supervised):
            supervised_cams = cams[rois.supervised.index] if self.cam_on else None
            inputs = self._inputs(features, rois.supervised.boxes, supervised_cams, encoded)
            logits = self.mask_head(*inputs)
        if len(rois.with_mask):
            masks = crop_targets(rois.with_mask, targets, logits.shape[-1])
            losses["loss_mask"] = mask_loss(logits[rois.with_mask.index], masks)
            rates = mask_error_rates(logits[rois.with_mask.index], masks)
            scalars.update({f"mask_head/{k}": v for k, v in rates.items()})
        if len(rois.box_only) and self.box_supervision is not None:
            losses["loss_box_supervision"] = self.box_supervision(
                logits[rois.box_only.index], images, rois.box_only.boxes, iteration
            )
        if self.self_training is not None:
            scalars["self_training/num_rois"] = len(rois.box_only)
            if len(rois.box_only) and self.self_training.ramp(iteration) > 0:
                group = rois.box_only
                inputs = tuple(None if x is None else x[group.index] for x in inputs)
                losses["loss_self_training"], numbers = self.self_training(
                    logits[group.index], inputs, images, group.boxes, group.classes, iteration
                )
                scalars.update({f"self_training/{k}": v for k, v in numbers.items()})

        put_scalars(scalars)
        self._put_images(cams, sampled, logits)
        return {k: losses[k] if k in losses else self._zero_loss() for k in self._loss_names}

    @property
    def _loss_names(self):
        names = {
            "loss_contrastive": self.has_contrastive_loss,
            "loss_mask": True,
            "loss_box_supervision": self.box_supervision is not None,
            "loss_self_training": self.self_training is not None,
        }
        return [name for name, is_on in names.items() if is_on]

    def _contrastive_loss(self, encoded, cams, has_mask, masks):
        """
        Args:
            encoded (Tensor): (R, D, H, H), encoder output of all positive RoIs, R > 0.
            cams (Tensor): (R, 1, h, w), their CAMs.
            has_mask (Tensor): (R,) bool, True for base RoIs.
            masks (Tensor): (R, H, H) bool, their mask targets; not looked at for novel RoIs.

        Returns:
            tuple[Tensor, KeySets, dict]: the weighted loss, the sampled keys, and numbers for the
            event storage.
        """
        storage = get_event_storage()
        ramp = self.contrastive_head.ramp(storage.iter)
        storage.put_scalar("contrastive/ramp", ramp, smoothing_hint=False)
        # By way of the mask head's resolution, as in the authors' code.
        cams = resize_map(resize_map(cams.detach(), self._mask_input_size), encoded.shape[-1])
        terms, pixel_sets, sampled = self.contrastive_head.contrast(
            encoded, masks, has_mask, min_max_normalize(cams)[:, 0]
        )
        scalars = {"contrastive/num_kept": pixel_sets.kept.sum()}
        scalars.update({f"contrastive/num_{k}": v.sum() for k, v in sampled._asdict().items()})
        scalars.update({f"contrastive/{k}": v for k, v in terms._asdict().items()})
        return sum(terms) * (self.contrastive_head.loss_weight * ramp), sampled, scalars

    def _put_images(self, cams, sampled, logits):
        is_on = self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0
        if is_on and cams is not None:
            cams = min_max_normalize(resize_map(cams.detach(), self._mask_input_size))
            put_training_images(cam=cams, sampled=sampled, mask_logits=logits)

    def _zero_loss(self):
        """A zero that depends on every trainable parameter: each of them gets a gradient."""
        modules = [x for x in (self.mask_head, self.contrastive_head) if x is not None]
        parameters = [p for module in modules for p in module.parameters()]
        trainable = [p.sum() for p in parameters if p.requires_grad]
        return sum(trainable, start=parameters[0].new_zeros(())) * 0.0

    def _pool(self, pooler, features, boxes):
        return pooler([features[name] for name in self.in_features], boxes)

    @property
    def _mask_input_size(self):
        return self.mask_pooler.output_size[0]


def crop_targets(rois: RoIs, targets: list[Instances], size: int) -> torch.Tensor:
    """
    Args:
        rois (RoIs): N, of all images.
        targets (list[Instances]): ground truth of each image. Without `gt_masks` in an image, the
            targets of its RoIs are empty.
        size (int): side of the mask targets, in cells.

    Returns:
        Tensor: (N, size, size) bool.
    """
    crops = []
    for x, target in zip(rois.instances, targets):
        boxes = x.proposal_boxes.tensor
        if target.has("gt_masks") and len(x):
            crops.append(crop_mask_targets(target.gt_masks, x.gt_index, boxes, size))
        else:
            crops.append(boxes.new_zeros(len(x), size, size, dtype=torch.bool))
    return cat(crops)


def refuse_synchronized_norms(*heads: nn.Module | None) -> None:
    """
    A process without RoIs runs none of these heads; the others would wait for its statistics.

    Raises:
        ValueError: if a head has such a norm.
    """
    norms = (nn.SyncBatchNorm, NaiveSyncBatchNorm)
    if any(isinstance(m, norms) for head in heads if head is not None for m in head.modules()):
        raise ValueError(
            "MODEL.ROI_MASK_HEAD.NORM, MODEL.ROI_CONTRASTIVE_HEAD.NORM and "
            "MODEL.ROI_CONTRASTIVE_HEAD.PROJECTOR_NORM cannot be synchronized over processes: one "
            "without RoIs would let the others wait forever. Choose BN or GN"
        )


def _slice_box_lists(boxes, start, end):
    """Boxes number `start` to `end` of all images together, as one Boxes for each image."""
    slices, offset = [], 0
    for x in boxes:
        slices.append(Boxes(x[max(start - offset, 0) : max(end - offset, 0)]))
        offset += len(x)
    return slices
