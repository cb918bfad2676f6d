"""
The conductor: samples RoIs and hands boxes, features and CAMs from head to head. In training: box
head -> CAM -> contrastive head -> mask head. In inference: the same on the final detections,
without what only the losses need.
"""

from functools import lru_cache
from typing import Optional

import torch
from detectron2.config import configurable
from detectron2.layers import NaiveSyncBatchNorm, ShapeSpec, cat
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from .box_head import ContrastMaskBoxHead, ContrastMaskBoxPredictor
from .box_supervision import BoxSupervision
from .cam import class_activation_map, min_max_normalize, resize_map
from .contrastive_head import ContrastiveHead
from .event_scalars import put_scalars
from .gt_box_sampling import include_gt_boxes
from .loss_ramp import LossRamp
from .mask_head import ContrastMaskMaskHead, mask_error_rates, mask_loss
from .mask_targets import crop_mask_targets
from .matcher import ReassigningMatcher
from .positive_rois import select_positive_rois
from .self_similarity import enhance_by_self_similarity
from .training_images import put_training_images


@ROI_HEADS_REGISTRY.register()
class ContrastMaskROIHeads(StandardROIHeads):
    """
    RoI heads of ContrastMask. Ground truth comes with the fields `gt_boxes`, `gt_classes`,
    `gt_masks` and `gt_has_mask` (bool): masks are looked at only where `gt_has_mask` is True.
    """

    @configurable
    def __init__(
        self,
        *,
        contrastive_pooler: Optional[nn.Module] = None,
        contrastive_head: Optional[nn.Module] = None,
        loss_ramp=None,
        max_contrastive_rois: int = 0,
        box_supervision: Optional[nn.Module] = None,
        cam_on: bool = True,
        gt_boxes_only: bool = True,
        test_rois_per_chunk: int = 128,
        vis_period: int = 0,
        proposal_append_gt: bool = True,
        include_gt_boxes: bool = False,
        **kwargs,
    ):
        """
        Args:
            contrastive_pooler (nn.Module): pools the features of the contrastive head.
            contrastive_head (nn.Module): None leaves a class-agnostic Mask R-CNN.
            loss_ramp (callable): iteration -> factor of the contrastive loss.
            max_contrastive_rois (int): RoIs of a batch in the contrastive loss; 0 for all positive.
            box_supervision (nn.Module): mask loss of ground-truth boxes without a mask, or None.
            cam_on (bool): whether the mask head receives CAMs.
            gt_boxes_only (bool): mask loss on ground-truth boxes only, not on other proposals.
            test_rois_per_chunk (int): RoIs the mask branch runs on at once in inference.
            vis_period (int): store images every so many iterations; 0 for never.
            proposal_append_gt (bool): add ground-truth boxes to the proposals.
            include_gt_boxes (bool): sample all of these, not some of them by chance.

        Other arguments are those of :class:`StandardROIHeads`.
        """
        super().__init__(proposal_append_gt=False, **kwargs)
        if self.train_on_pred_boxes:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES is not supported: CAMs belong to the boxes "
                "of the proposals"
            )
        if test_rois_per_chunk < 1:
            raise ValueError(
                "MODEL.ROI_MASK_HEAD.TEST_ROIS_PER_CHUNK has to be at least 1, "
                f"not {test_rois_per_chunk}"
            )
        if gt_boxes_only and not proposal_append_gt and self.mask_on:
            raise ValueError(
                "MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY needs MODEL.ROI_HEADS.PROPOSAL_APPEND_GT True"
            )
        if include_gt_boxes and not proposal_append_gt:
            raise ValueError(
                "MODEL.ROI_HEADS.INCLUDE_GT_BOXES needs MODEL.ROI_HEADS.PROPOSAL_APPEND_GT True"
            )
        if comm.get_world_size() > 1 and self.mask_on:
            _refuse_synchronized_norms([self.mask_head, contrastive_head])
        if box_supervision is not None and not proposal_append_gt:
            raise ValueError(
                "MODEL.ROI_MASK_HEAD.BOX_SUPERVISION needs MODEL.ROI_HEADS.PROPOSAL_APPEND_GT True"
            )
        self.append_gt = proposal_append_gt
        self.include_gt_boxes = include_gt_boxes
        self.contrastive_pooler = contrastive_pooler
        self.contrastive_head = contrastive_head
        self.loss_ramp = loss_ramp
        self.max_contrastive_rois = max_contrastive_rois
        self.box_supervision = box_supervision
        self.cam_on = cam_on
        self.gt_boxes_only = gt_boxes_only
        self.test_rois_per_chunk = test_rois_per_chunk
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        ret.update(cls._init_contrastive_head(cfg, input_shape))
        if cfg.MODEL.MASK_ON:
            ret["box_supervision"] = BoxSupervision.from_config(cfg)
        ret["cam_on"] = cfg.MODEL.ROI_MASK_HEAD.CAM_ON
        ret["gt_boxes_only"] = cfg.MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY
        ret["test_rois_per_chunk"] = cfg.MODEL.ROI_MASK_HEAD.TEST_ROIS_PER_CHUNK
        ret["vis_period"] = cfg.VIS_PERIOD
        ret["include_gt_boxes"] = cfg.MODEL.ROI_HEADS.INCLUDE_GT_BOXES
        heads = cfg.MODEL.ROI_HEADS
        if heads.LOW_QUALITY_MIN_IOU >= 0:
            ret["proposal_matcher"] = ReassigningMatcher(
                heads.IOU_THRESHOLDS,
                heads.IOU_LABELS,
                min_iou=heads.LOW_QUALITY_MIN_IOU,
                last_are_gt=heads.PROPOSAL_APPEND_GT,
            )
        return ret

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        _check_head(ret["box_head"], ContrastMaskBoxHead, "MODEL.ROI_BOX_HEAD.NAME")
        ret["box_predictor"] = ContrastMaskBoxPredictor(cfg, ret["box_head"].output_shape)
        return ret

    @classmethod
    def _init_mask_head(cls, cfg, input_shape):
        ret = super()._init_mask_head(cfg, input_shape)
        if ret:
            _check_head(ret["mask_head"], ContrastMaskMaskHead, "MODEL.ROI_MASK_HEAD.NAME")
        return ret

    @classmethod
    def _init_contrastive_head(cls, cfg, input_shape):
        head = cfg.MODEL.ROI_CONTRASTIVE_HEAD
        if not (cfg.MODEL.MASK_ON and head.ENABLED):
            return {}
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        size = head.POOLER_RESOLUTION
        shape = ShapeSpec(channels=input_shape[in_features[0]].channels, height=size, width=size)
        return {
            "contrastive_pooler": ROIPooler(
                output_size=size,
                scales=tuple(1.0 / input_shape[f].stride for f in in_features),
                sampling_ratio=head.POOLER_SAMPLING_RATIO,
                pooler_type=head.POOLER_TYPE,
            ),
            "contrastive_head": ContrastiveHead(cfg, shape),
            "loss_ramp": LossRamp(cfg),
            "max_contrastive_rois": head.MAX_ROIS,
        }

    def forward(self, images, features, proposals, targets=None):
        """See :class:`detectron2.modeling.ROIHeads`."""
        features = _at_least_float32(features)
        if not self.training:
            instances = self._detect(features, proposals)
            return self.forward_with_given_boxes(features, instances), {}

        assert targets, "'targets' argument is required during training"
        proposals = self.label_and_sample_proposals(proposals, targets)
        box_features = self._box_features(features, [x.proposal_boxes for x in proposals])
        losses = self.box_predictor.losses(self.box_predictor(box_features), proposals)
        if self.mask_on:
            losses.update(
                self._mask_branch_losses(
                    images, features, box_features.class_map, proposals, targets
                )
            )
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    def forward_with_given_boxes(self, features, instances):
        """
        Predict masks for given boxes and classes.

        Args:
            features (dict[str, Tensor]): feature maps, (N, C, H, W) each.
            instances (list[Instances]): N, with `pred_boxes` and `pred_classes`. With `pred_cams`
                (R, h, w), these CAMs are used; otherwise they come from the features in the boxes.

        Returns:
            list[Instances]: the same objects with `pred_cams`, and with `pred_masks`
            (R, 1, H, W) probabilities, in 0..1.
        """
        assert not self.training
        assert instances[0].has("pred_boxes") and instances[0].has("pred_classes")
        features = _at_least_float32(features)
        if self.mask_on:
            if not instances[0].has("pred_cams"):
                self._add_cams_of_boxes(features, instances)
            mask_rcnn_inference(self._predict_mask_logits(features, instances), instances)
        return self._forward_keypoint(features, instances)

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals, targets):
        """
        See :meth:`ROIHeads.label_and_sample_proposals`. Two fields of the result are new:
        `is_gt_box` (bool), whether the RoI is a ground-truth box itself, and `gt_index` (int64),
        the matched ground truth of the image. Masks stay in `targets`.
        """
        num_proposals = [len(x) for x in proposals]
        targets = [_replace_masks_by_index(x) for x in targets]
        if self.append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        for x, num in zip(proposals, num_proposals):
            x.is_gt_box = torch.arange(len(x), device=x.proposal_boxes.device) >= num
        proposals = super().label_and_sample_proposals(proposals, targets)
        for x in proposals:
            if not x.has("gt_index"):  # Detectron2 sets no ground-truth fields without ground truth
                x.gt_index = torch.zeros_like(x.gt_classes)
                x.gt_has_mask = torch.zeros_like(x.gt_classes, dtype=torch.bool)
        return proposals

    def _sample_proposals(self, matched_idxs, matched_labels, gt_classes):
        sampled, classes = super()._sample_proposals(matched_idxs, matched_labels, gt_classes)
        num_gt = len(gt_classes)
        if self.include_gt_boxes and num_gt > 0:
            is_positive = (classes >= 0) & (classes < self.num_classes)
            sampled = include_gt_boxes(sampled, is_positive, len(matched_idxs), num_gt)
            classes = torch.where(is_positive, gt_classes[matched_idxs[sampled]], classes)
        return sampled, classes

    def _box_features(self, features, boxes):
        return self.box_head(self.box_pooler([features[f] for f in self.box_in_features], boxes))

    def _class_weights(self, classes):
        """Rows of the classifier, (R, C), for classes (R,) int64."""
        return self.box_predictor.cls_score.weight[classes]

    def _detect(self, features, proposals):
        """Final detections, with the CAM of each from the features of its proposal."""
        box_features = self._box_features(features, [x.proposal_boxes for x in proposals])
        predictions = self.box_predictor(box_features)
        instances, kept = self.box_predictor.inference(predictions, proposals)
        if self.mask_on:
            num_proposals = [len(x) for x in proposals]
            class_maps = box_features.class_map.split(num_proposals)
            for x, class_map, index in zip(instances, class_maps, kept):
                x.pred_cams = class_activation_map(
                    class_map[index], self._class_weights(x.pred_classes)
                )[:, 0]
        return instances

    def _add_cams_of_boxes(self, features, instances):
        box_features = self._box_features(features, [x.pred_boxes for x in instances])
        classes = cat([x.pred_classes for x in instances])
        cams = class_activation_map(box_features.class_map, self._class_weights(classes))[:, 0]
        for x, cam in zip(instances, cams.split([len(x) for x in instances])):
            x.pred_cams = cam

    def _predict_mask_logits(self, features, instances):
        """
        Args:
            features (dict[str, Tensor]):
            instances (list[Instances]): with `pred_boxes` and `pred_cams`.

        Returns:
            Tensor: (R, 1, H, W) mask logits of all instances, in order.
        """
        cams = cat([x.pred_cams for x in instances])[:, None]
        boxes = [x.pred_boxes.tensor for x in instances]
        size = self._mask_input_size
        if len(cams) == 0:
            side = self.mask_head.output_size(size)
            return cams.new_zeros(0, 1, side, side)
        logits = []
        for start in range(0, len(cams), self.test_rois_per_chunk):
            end = start + self.test_rois_per_chunk
            chunk = _slice_box_lists(boxes, start, end)
            enhanced = None
            if self.contrastive_head is not None:
                encoded = self.contrastive_head(self._contrastive_features(features, chunk))
                enhanced = enhance_by_self_similarity(encoded, size)
            cam = min_max_normalize(resize_map(cams[start:end], size)) if self.cam_on else None
            logits.append(self.mask_head(self._mask_features(features, chunk), cam, enhanced))
        return cat(logits)

    def _mask_branch_losses(self, images, features, class_map, proposals, targets):
        """
        Args:
            images (ImageList): the batch.
            features (dict[str, Tensor]):
            class_map (Tensor): (P, C, h, w), of all sampled proposals.
            proposals (list[Instances]): the sampled proposals.
            targets (list[Instances]): ground truth with masks.

        Returns:
            dict[str, Tensor]: "loss_mask", and "loss_contrastive" and "loss_box_supervision" if
            they are on. Every parameter of the branch gets a gradient, zero where nothing is
            learnt.
        """
        rois = select_positive_rois(
            proposals,
            self.num_classes,
            self.gt_boxes_only,
            max_rois=self.max_contrastive_rois,
            box_supervision=self.box_supervision is not None,
        )
        scalars = {"mask_head/num_rois": len(rois.with_mask), "contrastive/num_rois": len(rois)}
        contrastive = self.contrastive_head
        has_loss = contrastive is not None and contrastive.has_loss

        encoded = None  # features of the M supervised RoIs, or of all R if they have a loss
        if contrastive is not None:
            boxes = rois.boxes if has_loss else rois.supervised_boxes
            if sum(len(x) for x in boxes):
                encoded = contrastive(self._contrastive_features(features, boxes))

        cam = None
        if len(rois) and (self.cam_on or has_loss):
            cam = class_activation_map(class_map[rois.index], self._class_weights(rois.classes))
            cam = resize_map(cam, self._mask_input_size)

        @lru_cache(maxsize=None)  # both losses mostly want the same size
        def crop_targets(size):
            return _crop_targets(rois, targets, size)

        losses, sampled, mask_logits = {}, None, None
        if has_loss and len(rois):
            losses["loss_contrastive"], sampled = self._contrastive_loss(
                encoded, cam, rois.has_mask, crop_targets, scalars
            )
            encoded = encoded[rois.supervised]
        elif has_loss:
            losses["loss_contrastive"] = _zero_loss(contrastive)
        if len(rois.supervised):
            mask_logits = self._training_mask_logits(features, encoded, cam, rois)
        losses["loss_mask"] = self._mask_loss(mask_logits, rois, crop_targets, scalars)
        if self.box_supervision is not None:
            losses["loss_box_supervision"] = self._box_supervision_loss(mask_logits, images, rois)
        if mask_logits is None and contrastive is not None and not has_loss:
            losses["loss_mask"] = losses["loss_mask"] + _zero_loss(contrastive)

        put_scalars(scalars)
        storage = get_event_storage()
        if self.vis_period > 0 and storage.iter % self.vis_period == 0 and cam is not None:
            put_training_images(
                cam=min_max_normalize(cam.detach())[:, 0],
                sampled=sampled,
                mask_logits=mask_logits,
            )
        return losses

    def _contrastive_loss(self, encoded, cam, has_mask, crop_targets, scalars):
        """
        Args:
            encoded (Tensor): (R, D, H, W), encoder output of all positive RoIs, R > 0.
            cam (Tensor): (R, 1, h, w), their CAMs.
            has_mask (Tensor): (R,) bool, True for base RoIs.
            crop_targets (callable): size -> their mask targets, (R, size, size) bool.
            scalars (dict): numbers for the event storage are added to it.

        Returns:
            tuple[Tensor, KeySets]: the weighted loss, and the sampled keys.
        """
        size = encoded.shape[-1]
        storage = get_event_storage()
        ramp = self.loss_ramp(storage.iter)
        storage.put_scalar("contrastive/ramp", ramp, smoothing_hint=False)
        terms, pixel_sets, sampled = self.contrastive_head.contrast(
            encoded,
            crop_targets(size),
            has_mask,
            min_max_normalize(resize_map(cam.detach(), size))[:, 0],
        )
        scalars["contrastive/num_kept"] = pixel_sets.kept.sum()
        scalars.update({f"contrastive/num_{k}": v.sum() for k, v in sampled._asdict().items()})
        scalars.update({f"contrastive/{k}": v for k, v in terms._asdict().items()})
        return sum(terms) * (self.contrastive_head.loss_weight * ramp), sampled

    def _training_mask_logits(self, features, encoded, cam, rois):
        """
        Args:
            features (dict[str, Tensor]):
            encoded (Tensor): (M, D, H, W), encoder output of the supervised RoIs, M > 0, or None.
            cam (Tensor): (R, 1, h, w), CAMs of all positive RoIs; None if nothing uses them.
            rois (PositiveRoIs):

        Returns:
            Tensor: (M, 1, H, W), the logits of the supervised RoIs.
        """
        enhanced = None
        if encoded is not None:
            enhanced = enhance_by_self_similarity(encoded, self._mask_input_size)
        return self.mask_head(
            self._mask_features(features, rois.supervised_boxes),
            min_max_normalize(cam[rois.supervised]) if self.cam_on else None,
            enhanced,
        )

    def _mask_loss(self, logits, rois, crop_targets, scalars):
        """
        Args:
            logits (Tensor): (M, 1, H, W) of the supervised RoIs, or None if there are none.
            rois (PositiveRoIs):
            crop_targets (callable): size -> mask targets of all R, (R, size, size) bool.
            scalars (dict): numbers for the event storage are added to it.

        Returns:
            Tensor: the loss on the S RoIs with a mask.
        """
        if len(rois.with_mask) == 0:
            return _zero_loss(self.mask_head)
        masks = crop_targets(logits.shape[-1])[rois.supervised]
        if len(rois.box_only):
            logits, masks = logits[rois.with_mask], masks[rois.with_mask]
        rates = mask_error_rates(logits, masks)
        scalars.update({f"mask_head/{k}": v for k, v in rates.items()})
        return mask_loss(logits, masks)

    def _box_supervision_loss(self, logits, images, rois):
        """
        Args:
            logits (Tensor): (M, 1, H, W) of the supervised RoIs, or None if there are none.
            images (ImageList): the batch.
            rois (PositiveRoIs):

        Returns:
            Tensor: the loss on the T RoIs without a mask.
        """
        if len(rois.box_only) == 0:
            return _zero_loss(self.mask_head)
        iteration = get_event_storage().iter
        boxes = rois.box_only_boxes
        return self.box_supervision(logits[rois.box_only], images, boxes, iteration)

    def _mask_features(self, features, boxes):
        return self.mask_pooler([features[f] for f in self.mask_in_features], boxes)

    def _contrastive_features(self, features, boxes):
        """The contrastive head does not train the backbone: its features are detached."""
        return self.contrastive_pooler([features[f].detach() for f in self.mask_in_features], boxes)

    @property
    def _mask_input_size(self):
        return self.mask_pooler.output_size[0]


def _at_least_float32(features):
    """
    Feature maps from which RoIs are pooled. Detectron2's RoIAlign converts boxes to the type of the
    features, and bfloat16 would move the sides of boxes by up to 4 pixels. Under autocast RoIAlign
    computes in float32 anyway.
    """
    return {k: x.to(torch.promote_types(x.dtype, torch.float32)) for k, x in features.items()}


def _check_head(head, expected, key):
    """Detectron2's own heads would fail in the first step only, with an error about tensors."""
    if not isinstance(head, expected):
        raise ValueError(
            f"{key} is {type(head).__name__}, but ContrastMaskROIHeads needs {expected.__name__} "
            "or a subclass; configs/Base-FPN.yaml has the keys that belong together"
        )


def _refuse_synchronized_norms(heads):
    """
    A process without RoIs runs none of these heads; the others would wait for its statistics.

    Args:
        heads (list[nn.Module or None]):
    """
    norms = (nn.SyncBatchNorm, NaiveSyncBatchNorm)
    if any(isinstance(m, norms) for head in heads if head is not None for m in head.modules()):
        raise ValueError(
            "MODEL.ROI_MASK_HEAD.NORM, MODEL.ROI_CONTRASTIVE_HEAD.NORM and "
            "MODEL.ROI_CONTRASTIVE_HEAD.PROJECTOR_NORM cannot be synchronised over processes: one "
            "without RoIs would let the others wait forever. Choose BN or GN"
        )


def _replace_masks_by_index(targets):
    """
    Ground truth of one image without its masks, which are looked up by `gt_index` where they are
    needed instead of being copied for every sampled proposal. Without `gt_has_mask`, as from
    Detectron2's own mapper, every instance has a mask if there are masks at all.
    """
    fields = targets.get_fields()
    device = targets.gt_boxes.device
    light = Instances(targets.image_size, **{k: v for k, v in fields.items() if k != "gt_masks"})
    light.gt_index = torch.arange(len(targets), device=device)
    if not light.has("gt_has_mask"):
        has_masks = "gt_masks" in fields
        light.gt_has_mask = torch.full((len(targets),), has_masks, device=device)
    return light


def _crop_targets(rois, targets, size):
    """
    Args:
        rois (PositiveRoIs):
        targets (list[Instances]):
        size (int): side of the mask targets, in cells.

    Returns:
        Tensor: (R, size, size) bool, of all positive RoIs.
    """
    crops = []
    for x, target in zip(rois.instances, targets):
        boxes = x.proposal_boxes.tensor
        if target.has("gt_masks") and len(x):
            crops.append(crop_mask_targets(target.gt_masks, x.gt_index, boxes, size))
        else:
            crops.append(boxes.new_zeros(len(x), size, size, dtype=torch.bool))
    return cat(crops)


def _slice_box_lists(boxes, start, end):
    """Boxes number `start` to `end` of all images together, as one Boxes for each image."""
    slices, offset = [], 0
    for x in boxes:
        slices.append(Boxes(x[max(start - offset, 0) : max(end - offset, 0)]))
        offset += len(x)
    return slices


def _zero_loss(module):
    """A zero tensor that depends on every trainable parameter: each of them gets a gradient."""
    parameters = list(module.parameters())
    trainable = [p.sum() for p in parameters if p.requires_grad]
    return sum(trainable, start=parameters[0].new_zeros(())) * 0.0
