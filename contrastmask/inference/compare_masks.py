"""How well predicted masks fit those of a fully masked file."""

from dataclasses import dataclass, field
from typing import Dict, List

import numpy as np
import pycocotools.mask as mask_util
from tabulate import tabulate

from ..data.coco_format import AnnotationFile
from ..data.segmentation import to_rle

__all__ = ["MaskComparison", "compare_masks", "read_full_file"]

_GROUPS = ("base", "novel", "unused", "all")


@dataclass
class MaskComparison:
    """IoUs of predicted masks with true ones.

    Attributes:
        ious: "base", "novel", "unused" and "all" -> one IoU for each annotation.
        filled_box_ious: the same for the filled boxes, the masks that cost nothing.
        num_without_mask: predicted annotations that have no mask to compare with.
    """

    ious: Dict[str, List[float]] = field(default_factory=dict)
    filled_box_ious: Dict[str, List[float]] = field(default_factory=dict)
    num_without_mask: int = 0

    def format(self) -> str:
        rows = [
            [group, len(self.ious[group])]
            + [f"{np.mean(values[group]):.3f}" for values in (self.ious, self.filled_box_ious)]
            for group in _GROUPS
            if self.ious.get(group)
        ]
        headers = ["classes", "boxes", "mean IoU of masks", "of filled boxes"]
        table = tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)
        if self.num_without_mask:
            table += f"\n{self.num_without_mask} annotations have no mask to compare with"
        return table


def read_full_file(full_json):
    """
    Args:
        full_json (str): annotation file in COCO format.

    Returns:
        AnnotationFile: the file.
        dict: image id -> image.
        dict: image id -> list of annotations in Detectron2's format.

    Raises:
        AnnotationFileError: if the file is not sound.
    """
    file = AnnotationFile(full_json)
    images = file.images_by_id()
    instances, _ = file.instances_by_image(images, file.category_id_map())
    return file, images, instances


def compare_masks(masks, full_json, class_split, empty=()) -> MaskComparison:
    """
    Args:
        masks (dict): annotation id -> predicted mask, compressed RLE.
        full_json (str): file with the same annotation ids, and masks.
        class_split (ClassSplit): roles of the classes, which are matched by name.
        empty (sequence): ids of the annotations without any predicted pixel; their IoU is 0.

    Returns:
        MaskComparison:

    Raises:
        AnnotationFileError: if the file is not sound, or a mask has not the size of its image.
    """
    file, images, instances = read_full_file(full_json)
    names = file.class_names()
    roles = {name: "base" for name in class_split.base_names}
    roles.update((name, "novel") for name in class_split.novel_names)

    comparison = MaskComparison({group: [] for group in _GROUPS}, {group: [] for group in _GROUPS})
    masks = {**masks, **dict.fromkeys(empty)}
    num_found = 0
    for image_id, image in images.items():
        size = [image["height"], image["width"]]
        for x in instances[image_id]:
            if x["id"] not in masks or "segmentation" not in x:
                continue
            predicted = masks[x["id"]]
            if predicted is not None and list(predicted["size"]) != size:
                raise file.error(
                    "its image has not the size of the image of the predicted mask",
                    entry=f"annotation {x['id']!r} (image {image_id!r})",
                )
            num_found += 1
            true = to_rle(x["segmentation"], *size)
            box = mask_util.frPyObjects(np.array([x["bbox"]], dtype=np.float64), *size)
            box_iou, iou = float(mask_util.iou(box, [true], [0])[0, 0]), 0.0
            if predicted is not None:
                iou = float(mask_util.iou([predicted], [true], [0])[0, 0])
            for group in (roles.get(names[x["category_id"]], "unused"), "all"):
                comparison.ious[group].append(iou)
                comparison.filled_box_ious[group].append(box_iou)
    comparison.num_without_mask = len(masks) - num_found
    return comparison
