"""The annotations of a dataset, made fit for COCO evaluation."""

import os
from collections import Counter
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json

from ..data import Annotations, annotations_of, read_annotations
from ..data.coco_format import paused_garbage_collection
from ..data.masks import to_rle

__all__ = ["GroundTruth", "read_ground_truth"]


@dataclass
class GroundTruth:
    """
    Attributes:
        path: annotation file.
        images: COCO images with "id", "height" and "width".
        annotations: COCO annotations, numbered from 1: evaluation takes the id 0 for none.
            Annotations marked "ignore" are crowds here, because COCO evaluation counts detections
            on crowds neither as right nor as wrong. A crowd without a mask has its box as mask.
        category_ids: id in the file of each class of the model; None for a class it does not have.
        is_federated: in each image only some classes are annotated (LVIS).
    """

    path: str
    images: List[dict]
    annotations: List[dict]
    category_ids: List[Optional[int]]
    is_federated: bool

    def num_without_mask(self) -> Dict[int, int]:
        """Category id -> number of its annotations without a mask; categories without such are
        left out."""
        return dict(Counter(x["category_id"] for x in self.annotations if "segmentation" not in x))


def read_ground_truth(
    dataset_name: str, model_names: Sequence[str], output_dir: Optional[str] = None
) -> GroundTruth:
    """
    Args:
        dataset_name: a registered dataset. If it has no annotation file, one is made in
            `output_dir`, again for each process.
        model_names: class names of the model, with which those of the dataset are matched.
        output_dir: see above.

    Raises:
        ValueError: if the file is not sound, or has none of the classes.
    """
    annotations = annotations_of(dataset_name) or _read(dataset_name, output_dir)
    id_of = dict(zip(annotations.class_names, annotations.category_ids))
    metadata = MetadataCatalog.get(dataset_name)
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    if ids is not None:  # the names that Detectron2 knows come before those in the file
        id_of = {metadata.thing_classes[i]: category_id for category_id, i in ids.items()}
    category_ids = [id_of.get(name) for name in model_names]
    if not any(x is not None for x in category_ids):
        raise ValueError(
            f"Dataset '{dataset_name}' ({annotations.path}) has none of the model's classes"
        )
    return GroundTruth(
        annotations.path,
        [
            {"id": x["image_id"], "height": x["height"], "width": x["width"]}
            for x in annotations.records
        ],
        _coco_annotations(annotations),
        category_ids,
        annotations.is_federated,
    )


def _read(dataset_name: str, output_dir: Optional[str]) -> Annotations:
    metadata = MetadataCatalog.get(dataset_name)
    path = metadata.get("json_file")
    if path is None:
        if output_dir is None:
            raise ValueError(
                f"Dataset '{dataset_name}' has no annotation file: give output_dir for one"
            )
        # Not Detectron2's cache: it would take what an earlier run left there for the dataset.
        path = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
        os.makedirs(output_dir, exist_ok=True)
        convert_to_coco_json(dataset_name, path, allow_cached=False)
    return read_annotations(path)


@paused_garbage_collection()
def _coco_annotations(annotations: Annotations) -> List[dict]:
    result = []
    for record in annotations.records:
        size = record["height"], record["width"]
        for x in record["annotations"]:
            segmentation = x.get("segmentation", x.get("thin_segmentation"))
            if segmentation is None and x["iscrowd"]:
                left, top, w, h = x["bbox"]
                segmentation = [[left, top, left + w, top, left + w, top + h, left, top + h]]
            entry = {
                "id": len(result) + 1,
                "image_id": record["image_id"],
                "category_id": annotations.category_ids[x["category_id"]],
                "bbox": x["bbox"],
                "iscrowd": x["iscrowd"],
                "area": x.get("area"),
            }
            if segmentation is not None:
                entry["segmentation"] = segmentation
            if entry["area"] is None:
                has_mask = segmentation is not None and not x["iscrowd"]
                area = mask_util.area(to_rle(segmentation, *size)) if has_mask else 0
                entry["area"] = float(area or x["bbox"][2] * x["bbox"][3])
            result.append(entry)
    return result
