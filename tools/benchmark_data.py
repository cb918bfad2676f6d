"""The parts of tools/benchmark.py about annotation files, and synthetic ones for them."""

import itertools
import json
import os
import tempfile
import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Callable, Iterator, Optional

import numpy as np
import pycocotools.mask as mask_util
from benchmark_parts import Comparison
from detectron2.data.datasets import load_coco_json
from PIL import Image

from contrastmask.data import (
    ContrastMaskDatasetMapper,
    TrainingLoader,
    annotations_of,
    register_coco_format,
)
from contrastmask.data.coco_format import load_json
from contrastmask.data.datasets import forget_annotations
from contrastmask.data.inspection import inspect_annotation_file
from contrastmask.engine import load_config
from contrastmask.evaluation.coco_eval import coco_precision, group_metrics, resolve_backend
from contrastmask.evaluation.ground_truth import read_ground_truth


def coco_eval(args: Namespace) -> Iterator[Comparison]:
    """COCO evaluation of synthetic detections"""
    dataset, detections = synthetic_coco(args.images, 10 if args.quick else 100)
    ids = [x["id"] for x in dataset["categories"]]
    backends = dict.fromkeys(["pycocotools", resolve_backend("auto")])

    def run(backend, iou_type):
        precision = coco_precision(dataset, detections, iou_type, category_ids=ids, backend=backend)
        return {"AP": group_metrics(precision, range(len(ids)))["AP"]}

    for iou_type in ("bbox", "segm"):
        labels = {"IoU": iou_type, "images": args.images, "detections": len(detections)}
        functions = {backend: partial(run, backend, iou_type) for backend in backends}
        yield Comparison(labels, functions, repeats=1, warmup=0, has_memory=False)


def coco_size(args: Namespace) -> Iterator[Comparison]:
    """Annotations of COCO's size, and of a quarter and a half of it: how time and memory grow

    Processor seconds; GB is the most memory of the process until then. All image files are links to
    one.
    """
    num_images, num_objects = (8, 60) if args.quick else (118_287, 860_001)
    with tempfile.TemporaryDirectory() as folder:
        functions = {}
        for parts in (4, 2, 1):
            path = os.path.join(folder, f"part_of_{parts}")
            # In a process of its own: its memory does not count.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(_write_coco, path, num_images // parts, num_objects // parts).result()
            functions[f"{num_images // parts} images"] = partial(_use_coco, path, args.config_file)
        labels = {"annotations of all": num_objects}
        yield Comparison(labels, functions, repeats=1, warmup=0, has_memory=False)


def _write_coco(folder, num_images, num_objects):
    dataset, detections = synthetic_coco(num_images, 7, num_objects=num_objects, as_polygons=True)
    os.makedirs(os.path.join(folder, "images"))
    image = dataset["images"][0]
    pixels = np.random.default_rng(0).integers(0, 256, (image["height"], image["width"], 3))
    Image.fromarray(pixels.astype(np.uint8)).save(os.path.join(folder, "image.jpg"))
    for x in dataset["images"]:
        x["file_name"] = f"{x['id']:012}.jpg"
        os.symlink("../image.jpg", os.path.join(folder, "images", x["file_name"]))
    for name, content in (("train", dataset), ("results", detections)):
        Path(folder, f"{name}.json").write_text(json.dumps(content))


def _use_coco(folder, config_file):
    images, path = os.path.join(folder, "images"), os.path.join(folder, "train.json")
    name, columns = os.path.basename(folder), {}
    register_coco_format(name, path, images)
    opts = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0"]
    opts += ["INPUT.MASK_FORMAT", "bitmask", "MODEL.ROI_HEADS.NUM_CLASSES", "80"]
    opts += ["DATASETS.BASE_CLASSES", "['auto']"]
    cfg = load_config(config_file, opts)

    def stage(title: str, function: Callable, *args, **options):
        begin = time.process_time()
        result = function(*args, **options)
        columns[title] = time.process_time() - begin
        columns[f"GB, {title}"] = _peak_gigabytes()
        return result

    stage("parse", load_json, path)
    stage("inspect", inspect_annotation_file, path, images)
    stage("read", annotations_of, name)
    class_names = [str(i) for i in range(1, 81)]
    truth = stage("ground truth", read_ground_truth, name, class_names)
    mapper = ContrastMaskDatasetMapper(cfg, is_train=True)
    loader = stage("pack", TrainingLoader, cfg, mapper=mapper)
    forget_annotations()
    stage("10 batches", lambda batches: list(itertools.islice(batches, 10)), loader)
    results = stage("parse results", json.loads, Path(folder, "results.json").read_bytes())
    ids = truth.category_ids
    dataset = {"images": truth.images, "annotations": truth.annotations}
    dataset["categories"] = [{"id": i, "name": str(i)} for i in ids]
    for iou_type in ("bbox", "segm"):
        stage(f"evaluate {iou_type}", coco_precision, dataset, results, iou_type, category_ids=ids)
    del loader, dataset, truth, results
    stage("Detectron2 reads", load_coco_json, path, images)
    return columns


def _peak_gigabytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1e6
    return float("nan")


def synthetic_coco(
    num_images: int,
    num_detections: int,
    num_classes: int = 80,
    *,
    num_objects: Optional[int] = None,
    as_polygons: bool = False,
):
    """
    Args:
        num_images: 640 x 480 pixels each.
        num_detections: of each image.
        num_classes: with the category ids from 1.
        num_objects: of all images together; None for 7 an image on average.
        as_polygons: write masks of objects as polygons instead of RLE.

    Returns:
        tuple[dict, list[dict]]: COCO dataset, and COCO results: for each image three moved copies
        of its objects, then false ones, with lower scores.
    """
    rng, width, height = np.random.default_rng(0), 640, 480
    categories = [{"id": i, "name": str(i)} for i in range(1, num_classes + 1)]
    images = [{"id": i, "width": width, "height": height} for i in range(1, num_images + 1)]
    annotations, detections = [], []

    def random_object():
        radius = np.exp(rng.uniform(np.log(8), np.log(150), size=2))
        angles = np.sort(rng.uniform(0, 2 * np.pi, size=16))
        polygon = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return polygon + rng.uniform(0, (width, height)), int(rng.integers(num_classes)) + 1

    def describe(image, polygon, category_id, as_polygon=False):
        polygon = polygon.clip(0, (width, height)).ravel().tolist()
        (rle,) = mask_util.frPyObjects([polygon], height, width)
        box, area = mask_util.toBbox(rle).tolist(), float(mask_util.area(rle))
        rle["counts"] = rle["counts"].decode()
        ids = {"image_id": image["id"], "category_id": category_id}
        segmentation = [polygon] if as_polygon else rle
        return {**ids, "bbox": box, "area": area, "segmentation": segmentation}

    if num_objects is None:
        numbers = rng.poisson(7, size=num_images)
    else:
        numbers = rng.multinomial(num_objects, np.full(num_images, 1 / num_images))
    for image, number in zip(images, numbers):
        objects = [random_object() for _ in range(number)]
        for x in objects:
            entry = {"id": len(annotations) + 1, "iscrowd": 0, **describe(image, *x, as_polygons)}
            annotations.append(entry)
        for i in range(num_detections):
            is_copy = i < 3 * len(objects)
            polygon, category_id = objects[i % len(objects)] if is_copy else random_object()
            polygon = polygon + np.ptp(polygon, axis=0) * rng.normal(0, 0.05, size=2)
            score = rng.random() * (1.0 if is_copy else 0.5)
            detections.append({"score": score, **describe(image, polygon, category_id)})
    return {"images": images, "annotations": annotations, "categories": categories}, detections
