"""The annotations of a COCO dataset, made fit for evaluation."""

import logging
from collections import Counter

import pycocotools.mask as mask_util

from ..data.segmentation import has_usable_mask, to_rle

logger = logging.getLogger(__name__)

# The mask of a box with a shorter side, in pixels, may lie between the centres of pixels.
_MIN_MASK_SIDE = 3.0


def evaluation_annotations(file):
    """Copy the annotations and fill in what COCO evaluation needs beyond what training needs.

    What is left out, and what has a mask, is decided by the code that loads the file for training,
    with three differences. Annotations marked "ignore" become crowds, with their box for a mask
    where they have none: COCO evaluation counts detections on crowds neither as right nor as wrong.
    Crowds keep their mask. And the mask of an object so thin that it covers no pixel stays, and
    counts as not found, as COCO has it.

    "iscrowd" becomes 0 where it is absent; "area" that of the mask, or of the box where there is no
    mask. Ids are numbered from 1, because COCO evaluation takes an annotation with id 0 for none.

    Args:
        file (AnnotationFile): not changed.

    Returns:
        list[dict]: one per annotation that counts, in the order of the file.

    Raises:
        AnnotationFileError: if the file is not sound.
    """
    images = file.images_by_id()
    originals = file.content["annotations"]
    instances, _ = file.instances_by_image(
        images,
        file.category_id_map(),
        [{**x, "ignore": 0} if x.get("ignore") else x for x in originals],
    )
    instance_of = {x["id"]: x for of_image in instances.values() for x in of_image}
    annotations, num_without_area = [], 0
    for index, original in enumerate(originals):
        instance = instance_of.get(original["id"])
        if instance is None:
            continue
        annotation = {k: v for k, v in original.items() if k not in ("ignore", "segmentation")}
        annotation["id"] = index + 1
        annotation["iscrowd"] = 1 if original.get("ignore") else instance["iscrowd"]
        segmentation = _segmentation(original, instance)
        if segmentation is not None:
            annotation["segmentation"] = segmentation
        if annotation.get("area") is None:
            num_without_area += 1
            annotation["area"] = _area(annotation, images[annotation["image_id"]])
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


def _segmentation(original, instance):
    """The mask of an annotation as in the file, without unusable polygons; None for none."""
    mask = instance.get("segmentation")
    if isinstance(mask, dict):
        return {**original["segmentation"], "size": mask["size"]}
    if mask is not None:
        return mask
    x, y, w, h = original["bbox"]
    segmentation = original.get("segmentation")
    if (instance["iscrowd"] or min(w, h) < _MIN_MASK_SIDE) and has_usable_mask(segmentation):
        if isinstance(segmentation, list):
            return [polygon for polygon in segmentation if has_usable_mask([polygon])]
        return segmentation
    if original.get("ignore"):
        return [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return None


def _area(annotation, image):
    if "segmentation" in annotation:
        return float(
            mask_util.area(to_rle(annotation["segmentation"], image["height"], image["width"]))
        )
    return float(annotation["bbox"][2] * annotation["bbox"][3])
