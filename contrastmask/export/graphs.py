"""
Inference as graphs of tensors: what Detectron2 does with Boxes and Instances, without branches that
depend on values. Modules of a trained model are taken from it; those that only training needs stay
behind.
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import ImageList
from torch import Tensor, nn
from torchvision.ops import nms

from ..modeling.backbone import EfficientNetLite
from ..modeling.box_head import BoxFeatures
from ..modeling.cam import class_activation_map
from ..modeling.mask_branch import MaskBranch
from ..modeling.roi_heads import ContrastMaskROIHeads

__all__ = ["BoxMaskGraph", "DetectorGraph"]


@dataclass
class _Boxes:
    """Stands in for Detectron2's Boxes, whose constructor looks at their number."""

    tensor: Tensor


class _Pooler(nn.Module):
    """:class:`ROIPooler` for the boxes (R, 4) of one image."""

    def __init__(self, pooler: ROIPooler):
        """
        Raises:
            ValueError: for a pooler other than RoIAlign.
        """
        super().__init__()
        if not all(isinstance(x, ROIAlign) for x in pooler.level_poolers):
            raise ValueError("POOLER_TYPE: only models with ROIAlign and ROIAlignV2 are exported")
        self.poolers = pooler.level_poolers
        self.output_size = pooler.output_size
        self.levels = pooler.min_level, pooler.max_level
        self.canonical_size, self.canonical_level = (
            pooler.canonical_box_size,
            pooler.canonical_level,
        )

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """
        Args:
            features (list[Tensor]): (1, C, H, W), of each level.
            boxes (list[Tensor]): one tensor (R, 4), XYXY in pixels of the image.

        Returns:
            Tensor: (R, C, h, h).
        """
        (boxes,) = boxes
        rois = F.pad(boxes, [1, 0])
        low, high = self.levels
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        level = self.canonical_level + torch.log2(areas.sqrt() / self.canonical_size + 1e-8)
        level = level.floor().clamp(low, high).to(torch.int64) - low
        pooled = features[0].new_zeros(boxes.shape[0], features[0].shape[1], *self.output_size)
        for index, (x, pooler) in enumerate(zip(features, self.poolers)):
            (of_level,) = torch.nonzero(level == index, as_tuple=True)
            pooled = pooled.index_put((of_level,), pooler(x, rois[of_level]))
        return pooled


class _Proposals(nn.Module):
    """Inference of :class:`RPN` for one image."""

    def __init__(self, rpn: RPN):
        super().__init__()
        generator = rpn.anchor_generator
        self.head, self.in_features = rpn.rpn_head, rpn.in_features
        self.transform = rpn.box2box_transform
        self.strides, self.offset = generator.strides, generator.offset
        self.cell_anchors = generator.cell_anchors
        self.nms_thresh, self.min_size = rpn.nms_thresh, rpn.min_box_size
        self.pre_nms_topk, self.post_nms_topk = rpn.pre_nms_topk[False], rpn.post_nms_topk[False]

    def forward(self, features: dict[str, Tensor], height: int, width: int) -> Tensor:
        """
        Args:
            features (dict[str, Tensor]): (1, C, H, W) each.
            height, width (int): of the image, in pixels.

        Returns:
            Tensor: (R, 4) proposals, XYXY in pixels of the image, best first.
        """
        features = [features[name] for name in self.in_features]
        scores, boxes, levels = [], [], []
        for level, outputs in enumerate(zip(features, *self.head(features))):
            score, box = self._best_of_level(level, *outputs)
            scores.append(score)
            boxes.append(box)
            levels.append(torch.full_like(score, level, dtype=torch.int64))
        scores, boxes, levels = torch.cat(scores), torch.cat(boxes), torch.cat(levels)
        finite = boxes.isfinite().all(dim=1) & scores.isfinite()
        boxes = _clip(boxes, height, width)
        (usable,) = torch.nonzero(finite & _exceed(boxes, self.min_size), as_tuple=True)
        boxes = boxes[usable]
        levels = levels[usable]
        num_levels = len(self.in_features)
        kept = _nms_of_groups(
            boxes, scores[usable], levels, num_levels, (height, width), self.nms_thresh
        )
        return boxes[kept[: self.post_nms_topk]]

    def _best_of_level(self, level, features, scores, deltas):
        """Scores (k,) and boxes (k, 4); k does not depend on the size of the image."""
        height, width = features.shape[-2:]
        y, x = (
            (torch.arange(n, device=features.device, dtype=torch.float32) + self.offset)
            * self.strides[level]
            for n in (height, width)
        )
        y, x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        anchors = (shifts + list(self.cell_anchors)[level]).reshape(-1, 4)
        scores = scores[0].permute(1, 2, 0).reshape(-1)
        deltas = deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
        # Places without an anchor come last and are removed later.
        scores = F.pad(scores, [0, self.pre_nms_topk], value=-torch.inf)
        scores, index = scores.topk(self.pre_nms_topk)
        index = torch.where(scores.isfinite(), index, 0)
        return scores, self.transform.apply_deltas(deltas[index], anchors[index])


class BoxMaskGraph(nn.Module):
    """An image, and boxes with classes, to masks."""

    output_names = ("mask_logits", "cams")

    def __init__(self, model: GeneralizedRCNN):
        """
        Args:
            model: in evaluation mode. Its modules are shared, not copied.

        Raises:
            ValueError: for a model that this project does not export; it names the key.
        """
        super().__init__()
        heads = _exportable_heads(model)
        self.backbone = _without_padding_by_size(model.backbone)
        self.register_buffer("pixel_mean", model.pixel_mean, persistent=False)
        self.register_buffer("pixel_std", model.pixel_std, persistent=False)
        self.divisibility = max(model.backbone.size_divisibility, 1)
        self.box_in_features, self.mask_in_features = heads.box_in_features, heads.mask_in_features
        self.box_pooler, self.box_head = _Pooler(heads.box_pooler), heads.box_head
        self.class_layer = heads.box_predictor.cls_score
        self.mask_pooler, self.mask_head = _Pooler(heads.mask_pooler), heads.mask_head
        self.cam_on, self.color_crf = heads.cam_on, heads.color_crf
        self.contrastive_pooler = self.encoder = None
        if heads.contrastive_head is not None:
            self.contrastive_pooler = _Pooler(heads.contrastive_pooler)
            self.encoder = heads.contrastive_head.encoder

    def forward(self, image: Tensor, boxes: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            image (Tensor): (C, h, w) uint8, resized as the config says.
            boxes (Tensor): (N, 4) float32, XYXY in pixels of `image`.
            classes (Tensor): (N,) int64.

        Returns:
            tuple[Tensor, Tensor]: mask logits (N, H, H) of the cells of the boxes, and CAMs
            (N, h', h').
        """
        images, features = self.encode(image)
        boxes, classes = _add(boxes), _add(classes)
        cams = self.cams(self.box_features(features, boxes).class_map, classes)
        return self.mask_logits(images, features, boxes, cams)[:-1], cams[:-1]

    def encode(self, image: Tensor) -> tuple[ImageList, dict[str, Tensor]]:
        """The normalized and padded image, and its features."""
        height, width = image.shape[-2:]
        normalized = (image - self.pixel_mean) / self.pixel_std
        d = self.divisibility
        bottom, right = ((x + d - 1) // d * d - x for x in (height, width))
        images = ImageList(F.pad(normalized, [0, right, 0, bottom])[None], [(height, width)])
        return images, self.backbone(images.tensor)

    def box_features(self, features: dict[str, Tensor], boxes: Tensor) -> BoxFeatures:
        """Outputs of the box head for boxes (R, 4)."""
        features = [features[name] for name in self.box_in_features]
        return self.box_head(self.box_pooler(features, [boxes]))

    def cams(self, class_map: Tensor, classes: Tensor) -> Tensor:
        """CAMs (R, h', h') of classes (R,) int64 from class maps (R, C, h', h')."""
        return class_activation_map(class_map, self.class_layer.weight[classes])[:, 0]

    def mask_logits(
        self, images: ImageList, features: dict[str, Tensor], boxes: Tensor, cams: Tensor
    ) -> Tensor:
        """Logits (R, H, H) for boxes (R, 4), with their CAMs (R, h', h')."""
        branch = MaskBranch(
            in_features=self.mask_in_features,
            mask_pooler=self.mask_pooler,
            mask_head=self.mask_head,
            contrastive_pooler=self.contrastive_pooler,
            contrastive_head=self.encoder,
            box_supervision=None,
            self_training=None,
            color_crf=None,
            cam_on=self.cam_on,
            vis_period=0,
        )
        logits = branch.logits(features, [boxes], cams[:, None])[:, 0]
        if self.color_crf is not None:
            logits = self.color_crf(logits, images, [_Boxes(boxes)], is_quick=True)
        return logits


class DetectorGraph(BoxMaskGraph):
    """An image to boxes, scores, classes and masks."""

    output_names = ("boxes", "scores", "classes", "mask_logits", "cams")

    def __init__(self, model: GeneralizedRCNN):
        """See :class:`BoxMaskGraph`."""
        super().__init__(model)
        if not isinstance(model.proposal_generator, RPN) or not isinstance(
            model.proposal_generator.anchor_generator, DefaultAnchorGenerator
        ):
            raise ValueError(
                "MODEL.PROPOSAL_GENERATOR, ANCHOR_GENERATOR: only an RPN with axis-parallel "
                "anchors is exported"
            )
        predictor = model.roi_heads.box_predictor
        self.proposals = _Proposals(model.proposal_generator)
        self.box_layer, self.transform = predictor.bbox_pred, predictor.box2box_transform
        self.score_thresh, self.nms_thresh = predictor.test_score_thresh, predictor.test_nms_thresh
        self.num_classes = predictor.num_classes
        self.topk = predictor.test_topk_per_image

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """
        Args:
            image (Tensor): (C, h, w) uint8, resized as the config says.

        Returns:
            tuple: boxes (N, 4) float32, XYXY in pixels of `image`; scores (N,) float32, highest
            first; classes (N,) int64; mask logits (N, H, H) of the cells of the boxes; CAMs
            (N, h', h').
        """
        images, features = self.encode(image)
        height, width = images.image_sizes[0]
        rois = _add(self.proposals(features, height, width))
        class_map, class_vector, box_vector = self.box_features(features, rois)
        scores = self.class_layer(class_vector).softmax(dim=1)
        boxes = self.transform.apply_deltas(self.box_layer(box_vector), rois)
        finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
        boxes = _clip(boxes.unflatten(1, (-1, 4)), height, width)

        scores = scores[:, :-1]
        is_candidate = ((scores > self.score_thresh) & finite[:, None])[:-1]
        index, classes = torch.nonzero(is_candidate, as_tuple=True)
        scores = scores[index, classes]
        boxes = boxes[index, 0] if boxes.shape[1] == 1 else boxes[index, classes]
        kept = _nms_of_groups(
            boxes, scores, classes, self.num_classes, (height, width), self.nms_thresh
        )
        if self.topk >= 0:
            kept = kept[: self.topk]
        kept = kept[_exceed(boxes[kept], 0.0)]
        boxes, classes = _add(boxes[kept]), _add(classes[kept])
        cams = self.cams(class_map[_add(index[kept])], classes)
        logits = self.mask_logits(images, features, boxes, cams)
        return boxes[:-1], scores[kept], classes[:-1], logits[:-1], cams[:-1]


def _exportable_heads(model):
    heads = getattr(model, "roi_heads", None)
    if not isinstance(model, GeneralizedRCNN) or not isinstance(heads, ContrastMaskROIHeads):
        raise ValueError(
            "MODEL.META_ARCHITECTURE, ROI_HEADS.NAME: only GeneralizedRCNN with "
            "ContrastMaskROIHeads is exported"
        )
    if not heads.mask_on:
        raise ValueError("MODEL.MASK_ON is False: this model has no masks to export")
    if heads.keypoint_on:
        raise ValueError("MODEL.KEYPOINT_ON is True: keypoints are not exported")
    return heads


def _without_padding_by_size(backbone):
    bottom_up = getattr(backbone, "bottom_up", None)
    if not isinstance(bottom_up, EfficientNetLite):
        return backbone
    backbone = copy.deepcopy(backbone)
    backbone.bottom_up = bottom_up.with_fixed_padding()
    return backbone


def _add(x):
    """One more RoI, all zeros: no head runs on none, which not every runtime can."""
    return F.pad(x, [0, 0] * (x.dim() - 1) + [0, 1])


def _clip(boxes, height, width):
    """Boxes (..., 4) inside of the image."""
    x0, y0, x1, y1 = boxes.unbind(dim=-1)
    x0, x1 = x0.clamp(0, width), x1.clamp(0, width)
    y0, y1 = y0.clamp(0, height), y1.clamp(0, height)
    return torch.stack([x0, y0, x1, y1], dim=-1)


def _exceed(boxes, size):
    """(R,) bool: whether both sides of boxes (R, 4) are longer."""
    return (boxes[:, 2:] - boxes[:, :2] > size).all(dim=1)


def _nms_of_groups(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    num_groups: int,
    image_size: tuple[int, int],
    threshold: float,
) -> Tensor:
    """
    NMS within each group: groups are moved apart, as in torchvision's ``batched_nms``, which for
    many boxes goes another way. They form a square instead of a row, because float32 is less exact
    the larger a coordinate is.

    Args:
        boxes (Tensor): (R, 4) float32, inside of the image.
        scores (Tensor): (R,).
        groups (Tensor): (R,) int64, from 0.
        num_groups (int):
        image_size (tuple[int, int]): height and width.
        threshold (float): IoU above which the lower score goes.

    Returns:
        Tensor: int64 indices of the kept boxes, highest score first.
    """
    side = math.isqrt(num_groups - 1) + 1
    height, width = image_size
    shift = torch.stack([groups % side * (width + 1), groups // side * (height + 1)] * 2, dim=1)
    return nms(boxes + shift, scores, threshold)
