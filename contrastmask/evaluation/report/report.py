"""From the data of an evaluation to one HTML file."""

import json
import math
import os

import jinja2
import numpy as np
from detectron2.utils.file_io import PathManager

from ...atomic_files import write_whole
from ...data.coco_format import image_file_name
from ..group_metrics import METRICS
from ..results import GROUPS, group_key
from .charts import class_ap_chart, precision_recall_chart, training_chart
from .gallery import best_median_worst, draw_pair, match_masks

_TASKS = (
    ("Boxes", "bbox"),
    ("Masks", "segm"),
    ("Masks, predicted boxes filled", "segm-filled-box"),
)
_PAIRS_OF_EACH_KIND = 6


def write_report(path, *, dataset_name, results, data, class_split, image_root, metrics_file=None):
    """Write an HTML page with AP tables, charts and masks. It holds all that it shows.

    Args:
        path (str): file to write; its folder is created.
        dataset_name (str): for the title.
        results (dict[str, dict[str, float]]): what `ContrastMaskEvaluator.evaluate` returns.
        data (EvaluationData): of the same evaluation.
        class_split (ClassSplit): base and novel classes.
        image_root (str): folder of the images.
        metrics_file (str or None): metrics.json of the training; need not exist.
    """
    loader = jinja2.FileSystemLoader(os.path.dirname(__file__))
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    page = environment.get_template("report.html").render(
        dataset_name=dataset_name,
        num_images=len(data.images),
        num_annotations=len(data.annotations),
        num_detections=len(data.detections),
        split=class_split,
        groups=GROUPS,
        metrics=METRICS,
        tables=_tables(results),
        harmonic_mean=_cell(results.get("segm-harmonic", {}).get("AP", math.nan)),
        class_chart=_class_chart(results, class_split),
        class_chart_task="mask" if "segm" in results else "box",
        precision_recall=_precision_recall(data, class_split),
        training=training_chart(_read_metrics(metrics_file)),
        gallery=_gallery(data, class_split, image_root),
    )
    if os.path.dirname(path):
        PathManager.mkdirs(os.path.dirname(path))
    with write_whole(path, "w", encoding="utf-8") as f:
        f.write(page)


def _tables(results):
    """For each task: title and rows of group and formatted metrics."""
    tables = []
    for title, task in _TASKS:
        if task in results:
            rows = []
            for group in GROUPS:
                numbers = results[group_key(task, group)]
                rows.append((group, [_cell(numbers[metric]) for metric in METRICS]))
            tables.append((title, rows))
    return tables


def _cell(value):
    return "–" if math.isnan(value) else f"{value:.2f}"


def _class_chart(results, class_split):
    per_class = {
        task: {k[len("AP-") :]: v for k, v in results[task].items() if k.startswith("AP-")}
        for task in ("bbox", "segm")
        if task in results
    }
    if "segm" in per_class:
        return class_ap_chart(per_class["segm"], class_split, per_class.get("bbox"))
    return class_ap_chart(per_class["bbox"], class_split)


def _precision_recall(data, class_split):
    titles = {"bbox": "boxes", "segm": "masks"}
    precisions = {titles[task]: data.precisions[task] for task in titles if task in data.precisions}
    return precision_recall_chart(precisions, class_split) if precisions else None


def _read_metrics(path):
    """The whole lines of metrics.json; training may be writing the last one."""
    if path is None or not PathManager.isfile(path):
        return []
    metrics = []
    with PathManager.open(path) as f:
        for line in f:
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if isinstance(content, dict) and "iteration" in content:
                metrics.append(content)
    return metrics


def _gallery(data, class_split, image_root):
    """Title, numbers and pairs of pictures; None if there are no masks."""
    if "segm" not in data.precisions:
        return None
    role = "novel" if class_split.novel else "base"
    class_ids = {data.category_ids[i]: i for i in getattr(class_split, role)}
    pairs, num_missed = match_masks(data.images, data.annotations, data.detections, set(class_ids))
    kinds = {}
    for kind, chosen in best_median_worst(pairs, _PAIRS_OF_EACH_KIND).items():
        kinds[kind] = []
        for pair in chosen:
            class_id = class_ids[pair.annotation["category_id"]]
            file_name = image_file_name(data.images[pair.image_id])
            truth, predicted = draw_pair(
                pair, os.path.join(image_root, file_name), class_id, class_split
            )
            kinds[kind].append(
                {
                    "truth": truth,
                    "predicted": predicted,
                    "class_name": class_split.class_names[class_id],
                    "iou": f"{pair.iou:.2f}",
                    "score": f"{pair.detection['score']:.0%}",
                    "file_name": file_name,
                }
            )
    mean = f"{np.mean([pair.iou for pair in pairs]):.3f}" if pairs else "–"
    return {
        "role": role,
        "kinds": kinds,
        "num_found": len(pairs),
        "num_missed": num_missed,
        "mean": mean,
    }
