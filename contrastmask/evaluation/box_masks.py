"""Quality of masks that are predicted for ground-truth boxes: detection plays no part in it."""

from collections import defaultdict

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog

from ..data.segmentation import to_rle
from ..inference.box_masks import predict_box_masks
from .coco_eval import coco_precision
from .group_metrics import group_metrics

_CATEGORY = 1  # the only one: boxes are given, so classes do not matter


def evaluate_box_masks(cfg, model, dataset_name, class_split, *, batch_size=4, backend="auto"):
    """
    Predict a mask for each ground-truth box of a dataset and compare it with the true mask.

    Args:
        cfg (CfgNode): for the test transforms.
        model (GeneralizedRCNN): in evaluation mode, with a mask branch.
        dataset_name (str): a registered dataset; crowds and annotations without a mask are left
            out.
        class_split (ClassSplit): base and novel classes of this dataset.
        batch_size (int): images at a time.
        backend (str): see :func:`coco_precision`.

    Returns:
        dict[str, dict[str, float]]: "base", "novel" and "all" -> "IoU", the mean IoU of the masks,
        and "AP", "AP50" of the masks as detections of one single class; all in percent, NaN where a
        group has no annotation.

    Raises:
        ValueError: if an image cannot be read.
    """
    records = []
    for record in DatasetCatalog.get(dataset_name):
        annotations = [
            x for x in record["annotations"] if x.get("segmentation") and not x.get("iscrowd", 0)
        ]
        if annotations:
            records.append({**record, "annotations": annotations})

    roles = {i: "base" for i in class_split.base}
    roles.update((i, "novel") for i in class_split.novel)
    rows = defaultdict(list)  # role -> (image, ground truth RLE, predicted RLE or None, score, IoU)
    for record, masks, problem in predict_box_masks(cfg, model, records, batch_size=batch_size):
        if masks is None:
            raise ValueError(f"{record['file_name']} of dataset '{dataset_name}': {problem}")
        size = record["height"], record["width"]
        for annotation, mask in zip(record["annotations"], masks):
            target = to_rle(annotation["segmentation"], *size)
            iou = 0.0
            if mask.segmentation is not None:
                iou = float(mask_util.iou([mask.segmentation], [target], [0])[0, 0])
            row = record, target, mask.segmentation, mask.score, iou
            for group in {roles.get(annotation["category_id"]), "all"} - {None}:
                rows[group].append(row)
    return {
        group: {
            "IoU": 100 * float(np.mean([row[-1] for row in rows[group]]))
            if rows[group]
            else np.nan,
            **_class_agnostic_ap(rows[group], backend),
        }
        for group in ("base", "novel", "all")
    }


def _class_agnostic_ap(rows, backend):
    if not rows:
        return {"AP": np.nan, "AP50": np.nan}
    images = {record["image_id"]: record for record, *_ in rows}
    annotations, detections = [], []
    for number, (record, target, predicted, score, _) in enumerate(rows, start=1):
        entry = {"image_id": record["image_id"], "category_id": _CATEGORY}
        annotations.append(
            {
                **entry,
                "id": number,
                "iscrowd": 0,
                "area": float(mask_util.area(target)),
                "bbox": mask_util.toBbox(target).tolist(),
                "segmentation": _as_text(target),
            }
        )
        if predicted is not None:
            detections.append({**entry, "segmentation": predicted, "score": score})
    if not detections:
        return {"AP": 0.0, "AP50": 0.0}
    precision = coco_precision(
        {
            "images": [
                {"id": i, "height": x["height"], "width": x["width"]} for i, x in images.items()
            ],
            "annotations": annotations,
            "categories": [{"id": _CATEGORY, "name": "object"}],
        },
        detections,
        "segm",
        category_ids=[_CATEGORY],
        max_dets=max(len(x["annotations"]) for x in images.values()),
        backend=backend,
    )
    metrics = group_metrics(precision, [0])
    return {"AP": metrics["AP"], "AP50": metrics["AP50"]}


def _as_text(rle):
    counts = rle["counts"]
    return {**rle, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
