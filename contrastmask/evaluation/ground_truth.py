"""The annotations of a COCO dataset, made fit for evaluation."""

import logging
from collections import Counter

import pycocotools.mask as mask_util

from ..data.segmentation import has_usable_mask

logger = logging.getLogger(__name__)


def evaluation_annotations(coco_api):
    """Copy the annotations and fill in what COCO evaluation needs beyond what training needs.

    "iscrowd" becomes 0 where it is absent; "area" that of the mask, or of the box where there is no
    mask. Polygons of fewer than three points go, and so does a "segmentation" that has no usable
    mask. Ids are numbered from 1, because COCO evaluation takes an annotation with id 0 for none.

    Args:
        coco_api (pycocotools.coco.COCO): dataset with annotations; not changed.

    Returns:
        list[dict]: one per annotation, in the order of the file.
    """
    annotations, num_without_area = [], 0
    for index, original in enumerate(coco_api.dataset["annotations"]):
        annotation = {**original, "id": index + 1, "iscrowd": original.get("iscrowd") or 0}
        segmentation = annotation.pop("segmentation", None)
        if has_usable_mask(segmentation):
            if isinstance(segmentation, list):
                segmentation = [x for x in segmentation if has_usable_mask([x])]
            annotation["segmentation"] = segmentation
        if annotation.get("area") is None:
            num_without_area += 1
            annotation["area"] = _area(coco_api, annotation)
        annotations.append(annotation)
    if num_without_area:
        logger.info(
            f"{num_without_area} of {len(annotations)} annotations have no 'area'; it was computed "
            "from their masks or boxes."
        )
    return annotations


def count_missing_masks(annotations):
    """Count annotations without a mask.

    Args:
        annotations (list[dict]): from :func:`evaluation_annotations`.

    Returns:
        dict[int, int]: category id -> number of its annotations that have no mask; categories
        whose annotations all have one are left out.
    """
    return dict(Counter(x["category_id"] for x in annotations if "segmentation" not in x))


def _area(coco_api, annotation):
    if "segmentation" in annotation:
        return float(mask_util.area(coco_api.annToRLE(annotation)))
    return float(annotation["bbox"][2] * annotation["bbox"][3])
