"""
The conductor: samples RoIs and hands boxes, features and CAMs from head to head. In training: box
head -> CAM -> contrastive head -> mask head. In inference: the same on the final detections,
without what only the losses need.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import ImageList, Instances
from detectron2.utils import comm
from torch import nn

from .box_head import BoxFeatures, ContrastMaskBoxHead, ContrastMaskBoxPredictor
from .box_supervision import BoxSupervision
from .cam import class_activation_map
from .color_crf import ColorCRF
from .contrastive_head import ContrastiveHead
from .layers import at_least_float32
from .mask_branch import MaskBranch, refuse_synchronized_norms
from .mask_head import ContrastMaskMaskHead
from .published_rules import ReassigningMatcher
from .sampling import choose_rois, ground_truth_of_boxes, include_gt_boxes
from .self_training import SelfTraining


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
        contrastive_pooler: nn.Module | None = None,
        contrastive_head: nn.Module | None = None,
        max_contrastive_rois: int = 0,
        box_supervision: nn.Module | None = None,
        self_training: nn.Module | None = None,
        color_crf: nn.Module | None = None,
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
            max_contrastive_rois (int): RoIs of a batch in the contrastive loss; 0 for all positive.
            box_supervision (nn.Module): mask loss of ground-truth boxes without a mask, or None.
            self_training (nn.Module): another one, or None.
            color_crf (nn.Module): moves masks to the edges of colors in inference, or None.
            cam_on (bool): whether the mask head receives CAMs.
            gt_boxes_only (bool): mask loss on ground-truth boxes only, not on other proposals.
            test_rois_per_chunk (int): RoIs the mask branch runs on at once in inference.
            vis_period (int): store images every so many iterations; 0 for never.
            proposal_append_gt (bool): add ground-truth boxes to the proposals.
            include_gt_boxes (bool): sample all of these, not some of them by chance.

        Other arguments are those of :class:`StandardROIHeads`.

        Raises:
            ValueError: for options that exclude each other; it names their keys.
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
        for key, needs_gt_boxes in {
            "ROI_MASK_HEAD.GT_BOXES_ONLY": gt_boxes_only and self.mask_on,
            "ROI_MASK_HEAD.BOX_SUPERVISION": box_supervision is not None,
            "ROI_MASK_HEAD.SELF_TRAINING": self_training is not None,
            "ROI_HEADS.INCLUDE_GT_BOXES": include_gt_boxes,
        }.items():
            if needs_gt_boxes and not proposal_append_gt:
                raise ValueError(f"MODEL.{key} needs MODEL.ROI_HEADS.PROPOSAL_APPEND_GT True")
        if comm.get_world_size() > 1 and self.mask_on:
            refuse_synchronized_norms(self.mask_head, contrastive_head)
        self.append_gt = proposal_append_gt
        self.include_gt_boxes = include_gt_boxes
        self.contrastive_pooler = contrastive_pooler
        self.contrastive_head = contrastive_head
        self.max_contrastive_rois = max_contrastive_rois
        self.box_supervision = box_supervision
        self.self_training = self_training
        self.color_crf = color_crf
        self.cam_on = cam_on
        self.gt_boxes_only = gt_boxes_only
        self.test_rois_per_chunk = test_rois_per_chunk
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        ret = super().from_config(cfg, input_shape)
        ret.update(cls._init_contrastive_head(cfg, input_shape))
        if cfg.MODEL.MASK_ON:
            ret["box_supervision"] = BoxSupervision.from_config(cfg)
            ret["self_training"] = SelfTraining.from_config(cfg, ret["mask_head"])
            if cfg.MODEL.ROI_MASK_HEAD.COLOR_CRF.AT_TEST:
                ret["color_crf"] = ColorCRF.from_config(cfg)
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
            "max_contrastive_rois": head.MAX_ROIS,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """See :class:`detectron2.modeling.ROIHeads`."""
        features = at_least_float32(features)
        if not self.training:
            instances = self._detect(features, proposals)
            return self.forward_with_given_boxes(features, instances, images), {}

        assert targets, "'targets' argument is required during training"
        proposals = self.label_and_sample_proposals(proposals, targets)
        box_features = self._box_features(features, [x.proposal_boxes for x in proposals])
        losses = self.box_predictor.losses(self.box_predictor(box_features), proposals)
        if self.mask_on:
            losses.update(
                self._mask_branch_losses(images, features, box_features, proposals, targets)
            )
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    def forward_with_given_boxes(
        self,
        features: dict[str, torch.Tensor],
        instances: list[Instances],
        images: ImageList | None = None,
    ) -> list[Instances]:
        """
        Predict masks for given boxes and classes.

        Args:
            features (dict[str, Tensor]): feature maps, (N, C, H, W) each.
            instances (list[Instances]): N, with `pred_boxes` and `pred_classes`. With `pred_cams`
                (R, h, w), these CAMs are used; otherwise they come from the features in the boxes.
            images (ImageList): N, the normalized batch; needed for the colors of `color_crf`.

        Returns:
            list[Instances]: the same objects with `pred_cams`, and with `pred_masks`
            (R, 1, H, W) probabilities, in 0..1.

        Raises:
            ValueError: if images are needed and missing, as in Detectron2's test-time augmentation.
        """
        assert not self.training
        if self.mask_on and self.color_crf is not None and images is None:
            raise ValueError(
                "MODEL.ROI_MASK_HEAD.COLOR_CRF.AT_TEST needs the images beside the features: give "
                "`images`, or set it to False; it cannot be used with TEST.AUG.ENABLED"
            )
        assert instances[0].has("pred_boxes") and instances[0].has("pred_classes")
        features = at_least_float32(features)
        if self.mask_on:
            if not instances[0].has("pred_cams"):
                box_features = self._box_features(features, [x.pred_boxes for x in instances])
                cams = self._cams(box_features.class_map, cat([x.pred_classes for x in instances]))
                for x, cam in zip(instances, cams.split([len(x) for x in instances])):
                    x.pred_cams = cam[:, 0]
            self._mask_branch.add_masks(features, instances, self.test_rois_per_chunk, images)
        return self._forward_keypoint(features, instances)

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """
        See :meth:`ROIHeads.label_and_sample_proposals`. Three fields of the result are new:
        `is_gt_box` (bool), whether the RoI is a ground-truth box itself; `gt_index` (int64), the
        matched ground truth of the image; `gt_has_mask` (bool), whether that has a mask. Masks stay
        in `targets`.
        """
        num_proposals = [len(x) for x in proposals]
        targets = [ground_truth_of_boxes(x) for x in targets]
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

    def _box_features(self, features, boxes) -> BoxFeatures:
        return self.box_head(self.box_pooler([features[f] for f in self.box_in_features], boxes))

    def _cams(self, class_map, classes):
        """CAMs (R, 1, h, w) of classes (R,) int64 from class maps (R, C, h, w)."""
        return class_activation_map(class_map, self.box_predictor.cls_score.weight[classes])

    def _detect(self, features, proposals):
        """Final detections, with the CAM of each from the features of its proposal."""
        box_features = self._box_features(features, [x.proposal_boxes for x in proposals])
        predictions = self.box_predictor(box_features)
        instances, kept = self.box_predictor.inference(predictions, proposals)
        if self.mask_on:
            class_maps = box_features.class_map.split([len(x) for x in proposals])
            for x, class_map, index in zip(instances, class_maps, kept):
                x.pred_cams = self._cams(class_map[index], x.pred_classes)[:, 0]
        return instances

    def _mask_branch_losses(self, images, features, box_features, proposals, targets):
        branch = self._mask_branch
        rois = choose_rois(
            proposals,
            self.num_classes,
            gt_boxes_only=self.gt_boxes_only,
            box_only=self.box_supervision is not None or self.self_training is not None,
            max_rois=self.max_contrastive_rois,
        )
        cams = None
        if len(rois.positive) and branch.trains_with_cams:
            class_map = box_features.class_map[rois.positive.index]
            cams = self._cams(class_map, rois.positive.classes)
        return branch.losses(images, features, rois, cams, targets)

    @property
    def _mask_branch(self):
        return MaskBranch(
            in_features=self.mask_in_features,
            mask_pooler=self.mask_pooler,
            mask_head=self.mask_head,
            contrastive_pooler=self.contrastive_pooler,
            contrastive_head=self.contrastive_head,
            box_supervision=self.box_supervision,
            self_training=self.self_training,
            color_crf=self.color_crf,
            cam_on=self.cam_on,
            vis_period=self.vis_period,
        )


def _check_head(head, expected, key):
    """Detectron2's own heads would fail in the first step only, with an error about tensors."""
    if not isinstance(head, expected):
        raise ValueError(
            f"{key} is {type(head).__name__}, but ContrastMaskROIHeads needs {expected.__name__} "
            "or a subclass; configs/Base-FPN.yaml has the keys that belong together"
        )
