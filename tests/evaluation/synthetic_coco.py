"""A small synthetic COCO dataset and detections on it, from a seed."""

import json

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from contrastmask.data import ClassSplit

CLASS_NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
CATEGORY_IDS = [13, 3, 55, 2, 34, 5, 21, 8]  # neither ascending nor their own inverse
CLASS_WITHOUT_GROUND_TRUTH = 6
CLASS_WITHOUT_DETECTIONS = 7
SPLIT = ClassSplit(tuple(CLASS_NAMES), base=(0, 2, 4, 6), novel=(1, 3, 7))  # 5 is in neither


def make_dataset(seed=0, num_images=30):
    """COCO dict with polygons, crowds (RLE), all ranges of area, and a class without objects."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    classes = [i for i in range(len(CLASS_NAMES)) if i != CLASS_WITHOUT_GROUND_TRUTH]
    for image_id in range(1, num_images + 1):
        height, width = int(rng.integers(240, 400)), int(rng.integers(240, 400))
        images.append({"id": image_id, "height": height, "width": width, "file_name": "none.png"})
        for _ in range(int(rng.integers(0, 9))):
            polygon = _random_polygon(rng, height, width)
            rle = _polygon_to_rle(polygon, height, width)
            is_crowd = int(rng.random() < 0.1)
            annotations.append(
                {
                    "id": len(annotations),  # 0 included
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[rng.choice(classes)],
                    "iscrowd": is_crowd,
                    "area": float(mask_util.area(rle)),
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "segmentation": _to_json(rle) if is_crowd else [polygon.ravel().tolist()],
                }
            )
    categories = [{"id": i, "name": n} for i, n in zip(CATEGORY_IDS, CLASS_NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def make_detections(dataset, seed=1, max_false=6):
    """COCO results: shifted copies of most objects, some of a wrong class, and false ones."""
    rng = np.random.default_rng(seed)
    detections = []
    for image in dataset["images"]:
        size = image["height"], image["width"]
        objects = [x for x in dataset["annotations"] if x["image_id"] == image["id"]]
        polygons = [
            (_jitter(rng, np.reshape(x["segmentation"][0], (-1, 2))), x["category_id"])
            for x in objects
            if not x["iscrowd"]
            for _ in range(int(rng.integers(0, 3)))
        ]
        polygons += [(_random_polygon(rng, *size), None) for _ in range(rng.integers(0, max_false))]
        for polygon, category_id in polygons:
            if category_id is None or rng.random() < 0.1:
                category_id = CATEGORY_IDS[int(rng.integers(len(CATEGORY_IDS)))]
            if category_id == CATEGORY_IDS[CLASS_WITHOUT_DETECTIONS]:
                continue
            rle = _polygon_to_rle(polygon, *size)
            detections.append(
                {
                    "image_id": image["id"],
                    "category_id": category_id,
                    "score": round(float(rng.random()), 2),  # with ties
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "segmentation": _to_json(rle),
                }
            )
    return detections


def register(dataset, name, folder):
    """Write `dataset` to a JSON file and register it; returns its inputs for an evaluator."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(dataset))
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    MetadataCatalog.get(name).set(
        json_file=str(path),
        thing_classes=CLASS_NAMES,
        # By ascending id: the place of an entry is not its contiguous id.
        thing_dataset_id_to_contiguous_id={d: CATEGORY_IDS.index(d) for d in sorted(CATEGORY_IDS)},
    )
    return [{"image_id": x["id"]} for x in dataset["images"]]


def to_outputs(detections, dataset):
    """Detections as the model gives them: one {"instances": Instances} per image."""
    outputs = []
    for image in dataset["images"]:
        found = [x for x in detections if x["image_id"] == image["id"]]
        instances = Instances((image["height"], image["width"]))
        boxes = torch.tensor([x["bbox"] for x in found]).reshape(-1, 4)
        instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
        instances.scores = torch.tensor([x["score"] for x in found], dtype=torch.float64)
        classes = [CATEGORY_IDS.index(x["category_id"]) for x in found]
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        masks = np.zeros((len(found), image["height"], image["width"]), dtype=bool)
        for mask, x in zip(masks, found):
            mask[:] = mask_util.decode(x["segmentation"])
        instances.pred_masks = torch.from_numpy(masks)
        outputs.append({"instances": instances})
    return outputs


def _random_polygon(rng, height, width):
    radius = np.exp(rng.uniform(np.log(6), np.log(150), size=2))
    center = rng.uniform((0, 0), (width, height))
    angles = np.sort(rng.uniform(0, 2 * np.pi, size=12))
    points = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.clip(points, 0, (width, height))


def _jitter(rng, polygon):
    extent = np.ptp(polygon, axis=0)
    return polygon + extent * rng.normal(0, 0.05, size=2) + rng.normal(0, 1, size=polygon.shape)


def _polygon_to_rle(polygon, height, width):
    polygon = np.clip(polygon, 0, (width, height))
    return mask_util.merge(mask_util.frPyObjects([polygon.ravel().tolist()], height, width))


def _to_json(rle):
    return {"size": rle["size"], "counts": rle["counts"].decode()}
