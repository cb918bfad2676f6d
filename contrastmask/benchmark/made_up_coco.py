"""A dataset the size of COCO val2017, and detections on it, made up from a seed."""

import numpy as np
import pycocotools.mask as mask_util

_HEIGHT, _WIDTH = 480, 640


def make_dataset(num_images, num_classes=80, objects_per_image=7, seed=0):
    """
    Args:
        num_images, num_classes (int):
        objects_per_image (int): on average.
        seed (int):

    Returns:
        dict: COCO dataset with boxes and polygons.
    """
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for image_id in range(1, num_images + 1):
        images.append({"id": image_id, "height": _HEIGHT, "width": _WIDTH, "file_name": ""})
        for _ in range(rng.poisson(objects_per_image)):
            polygon = _random_polygon(rng)
            rle = _encode(polygon)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.integers(num_classes)) + 1,
                    "iscrowd": 0,
                    "area": float(mask_util.area(rle)),
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "segmentation": [polygon.ravel().tolist()],
                }
            )
    categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(num_classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def make_detections(dataset, per_image=100, seed=1):
    """
    Args:
        dataset (dict): from :func:`make_dataset`.
        per_image (int): detections in each image.
        seed (int):

    Returns:
        list[dict]: COCO results with boxes and masks: three moved copies of each object, one in
        ten of a wrong class, and false ones with lower scores.
    """
    rng = np.random.default_rng(seed)
    objects = {image["id"]: [] for image in dataset["images"]}
    for annotation in dataset["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    num_classes = len(dataset["categories"])
    detections = []
    for image_id, found in objects.items():
        copies = (found * 3)[:per_image]
        for i in range(per_image):
            is_copy = i < len(copies)
            if is_copy:
                polygon = _move(rng, np.reshape(copies[i]["segmentation"][0], (-1, 2)))
            else:
                polygon = _random_polygon(rng)
            is_right = is_copy and rng.random() > 0.1
            category_id = copies[i]["category_id"] if is_right else rng.integers(num_classes) + 1
            rle = _encode(polygon)
            detections.append(
                {
                    "image_id": image_id,
                    "category_id": int(category_id),
                    "score": float(rng.random() * (1.0 if is_copy else 0.5)),
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    return detections


def _random_polygon(rng):
    radius = np.exp(rng.uniform(np.log(8), np.log(150), size=2))
    center = rng.uniform((0, 0), (_WIDTH, _HEIGHT))
    angles = np.sort(rng.uniform(0, 2 * np.pi, size=16))
    points = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.clip(points, 0, (_WIDTH, _HEIGHT))


def _move(rng, polygon):
    moved = polygon + np.ptp(polygon, axis=0) * rng.normal(0, 0.05, size=2)
    return np.clip(moved + rng.normal(0, 1, size=polygon.shape), 0, (_WIDTH, _HEIGHT))


def _encode(polygon):
    return mask_util.frPyObjects([polygon.ravel().tolist()], _HEIGHT, _WIDTH)[0]
