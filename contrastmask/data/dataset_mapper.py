"""From the annotations of one image to training instances, of which only some have masks."""

import importlib.util
from typing import FrozenSet, List, Optional

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, PolygonMasks

from .images import ImageFileError, ImageReader, naming_image
from .masks import has_usable_mask, to_rle, usable_segmentation
from .resizing import with_resize_backend
from .supervision import class_split_from_config

__all__ = ["ContrastMaskDatasetMapper", "SkipUnreadable"]

# A box with a shorter side, in pixels, is empty; as in Detectron2's `filter_empty_instances`.
_MIN_BOX_SIDE = 1e-5


def _check_shapely() -> None:
    """Raise ImportError now rather than in a worker of the data loader."""
    if importlib.util.find_spec("shapely") is None:
        raise ImportError(
            "Cropping polygons (INPUT.CROP.ENABLED with INPUT.MASK_FORMAT 'polygon') needs the "
            "package shapely: pip install shapely, or set INPUT.MASK_FORMAT bitmask"
        )


class ContrastMaskDatasetMapper(DatasetMapper):
    """Detectron2's mapper for data in which an instance may have a mask or only a box.

    In training, `instances` has `gt_boxes`, `gt_classes`, `gt_masks` for all instances, and
    `gt_has_mask` (bool tensor). Where `gt_has_mask` is False the mask is empty. That is so for
    instances without a usable mask, and for those of other classes than `mask_classes`: their
    segmentation is thrown away before anything looks at it.

    In evaluation, the input has "annotations": the instances with a mask, crowds left out, each
    with "category_id", "bbox" (XYXY, in pixels of the image file) and its mask as an RLE.

    An instance stays if its box is not empty. With random cropping an instance that had a mask
    must still have some of it, and its box is made to fit what is left; a box-only instance keeps
    the part of its box inside the crop. A mask that vanishes without cropping (by scaling down)
    leaves a box-only instance.
    """

    @configurable
    def __init__(
        self,
        *args,
        mask_classes: Optional[FrozenSet[int]] = None,
        image_reader: Optional[ImageReader] = None,
        **kwargs,
    ):
        """
        Args:
            mask_classes: contiguous ids of the classes whose masks are used; None for all.
            image_reader: reads image files.
            args, kwargs: as in Detectron2's :class:`DatasetMapper`.
        """
        super().__init__(*args, **kwargs)
        self.mask_classes = mask_classes
        self.image_reader = image_reader or ImageReader(self.image_format)
        if self.recompute_boxes and self.instance_mask_format == "polygon":  # with cropping
            _check_shapely()

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        ret = super().from_config(cfg, is_train)
        backend = cfg.INPUT.RESIZE_BACKEND
        ret["augmentations"] = with_resize_backend(ret["augmentations"], backend)
        ret["image_reader"] = ImageReader.from_config(cfg)
        if is_train and cfg.MODEL.MASK_ON:
            ret["mask_classes"] = frozenset(class_split_from_config(cfg).base)
        return ret

    def __call__(self, dataset_dict):
        """As in Detectron2's mapper. Masks that are not used are removed before all else.

        Raises:
            ImageFileError: if the image file cannot be read, or not as it is described.
            ValueError: if the mask of an annotation cannot be used.
        """
        dataset_dict = dict(dataset_dict)
        annotations = dataset_dict.pop("annotations", None)
        if annotations is not None and self.is_train:
            dataset_dict["annotations"] = [
                self._keep_usable_mask(annotation, dataset_dict)
                for annotation in annotations
                if not annotation.get("iscrowd", 0)
            ]
        path, image_id = dataset_dict["file_name"], dataset_dict.get("image_id")
        image = self.image_reader(path, image_id)
        with naming_image(path, image_id):
            utils.check_image_size(dataset_dict, image)
            augmented = T.AugInput(image)
            transforms = self.augmentations(augmented)
            image_shape = augmented.image.shape[:2]
            # The transposed array is not contiguous, and sharing it between processes needs that.
            image = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
            dataset_dict["image"] = torch.as_tensor(image)
            if self.proposal_topk is not None:
                utils.transform_proposals(
                    dataset_dict, image_shape, transforms, proposal_topk=self.proposal_topk
                )
            if "annotations" in dataset_dict:
                self._transform_annotations(dataset_dict, transforms, image_shape)
        if annotations and self.use_instance_mask and not self.is_train:
            size = dataset_dict["height"], dataset_dict["width"]
            dataset_dict["annotations"] = _annotations_with_masks(annotations, *size)
        return dataset_dict

    def _keep_usable_mask(self, annotation: dict, dataset_dict: dict) -> dict:
        """A copy of one annotation, without its segmentation if that is not to be used."""
        kept = {key: value for key, value in annotation.items() if "segmentation" not in key}
        # Detectron2's transforms compute in the type they get: whole numbers would be cut.
        kept["bbox"] = [float(value) for value in annotation["bbox"]]
        is_allowed = self.mask_classes is None or annotation["category_id"] in self.mask_classes
        if not (self.use_instance_mask and is_allowed):
            return kept
        try:
            segmentation = usable_segmentation(annotation.get("segmentation"))
            if isinstance(segmentation, dict):
                self._check_rle(segmentation, dataset_dict)
        except ValueError as error:
            raise ValueError(
                f"Annotation {annotation.get('id', '')} of class {annotation['category_id']} in "
                f"image {dataset_dict['file_name']}: {error}"
            ) from None
        if segmentation is not None:
            kept["segmentation"] = segmentation
        return kept

    def _check_rle(self, rle: dict, dataset_dict: dict) -> None:
        if self.instance_mask_format == "polygon":
            raise ValueError(
                "its mask is an RLE, which INPUT.MASK_FORMAT 'polygon' cannot take. Set "
                "INPUT.MASK_FORMAT bitmask"
            )
        height, width = rle["size"]
        expected = dataset_dict.get("height", height), dataset_dict.get("width", width)
        if (height, width) != expected:
            raise ValueError(
                f"the size of its RLE is {(height, width)} (height, width), but that of its image "
                f"is {expected}"
            )

    def _transform_annotations(self, dataset_dict, transforms, image_shape):
        if not self.use_instance_mask:
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            return
        annotations = []
        for annotation in dataset_dict.pop("annotations"):
            if not self.use_keypoint:
                annotation.pop("keypoints", None)
            annotations.append(
                utils.transform_instance_annotations(
                    annotation,
                    transforms,
                    image_shape,
                    keypoint_hflip_indices=self.keypoint_hflip_indices,
                )
            )
        had_mask = torch.tensor(["segmentation" in a for a in annotations], dtype=torch.bool)
        for annotation in annotations:
            # No polygon: an empty mask in both formats, so all instances get one.
            annotation.setdefault("segmentation", [])
        instances = utils.annotations_to_instances(
            annotations, image_shape, mask_format=self.instance_mask_format
        )
        if not annotations:
            instances.gt_masks = self._no_masks(image_shape)
        instances.gt_has_mask = had_mask & instances.gt_masks.nonempty()

        keep = torch.ones_like(had_mask)
        if self.recompute_boxes:
            has_mask = instances.gt_has_mask
            masks = instances.gt_masks if has_mask.all() else instances.gt_masks[has_mask]
            instances.gt_boxes.tensor[has_mask] = masks.get_bounding_boxes().tensor
            keep = ~had_mask | has_mask
        keep &= instances.gt_boxes.nonempty(threshold=_MIN_BOX_SIDE)
        # Selecting copies the masks, which takes time.
        dataset_dict["instances"] = instances if keep.all() else instances[keep]

    def _no_masks(self, image_shape):
        if self.instance_mask_format == "polygon":
            return PolygonMasks([])
        return BitMasks(torch.zeros(0, *image_shape, dtype=torch.bool))


class SkipUnreadable:
    """A mapper for evaluation: an image that cannot be read costs that image, not the run."""

    def __init__(self, mapper):
        """
        Args:
            mapper (callable): from the dict of an image to an input of the model.
        """
        self._mapper = mapper

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Returns:
            dict: what the mapper gives; for an image that cannot be read its "image_id", and why as
            "problem".
        """
        try:
            return self._mapper(dataset_dict)
        except ImageFileError as error:
            return {"image_id": dataset_dict["image_id"], "problem": str(error)}


def _annotations_with_masks(annotations, height: int, width: int) -> List[dict]:
    """What evaluation compares with the masks that are predicted for the same boxes."""
    kept = []
    for x in annotations:
        box = BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS)
        inside = Boxes(torch.tensor([box]))
        inside.clip((height, width))
        if (
            x.get("iscrowd", 0)
            or not inside.nonempty()
            or not has_usable_mask(x.get("segmentation"))
        ):
            continue
        mask = to_rle(x["segmentation"], height, width)
        kept.append({"category_id": x["category_id"], "bbox": list(box), "segmentation": mask})
    return kept
