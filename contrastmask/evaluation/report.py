"""One HTML file with the results of an evaluation: tables, curves, and masks to look at."""

import base64
import io
import json
import math
import os
import re
from typing import Dict, List, Optional

import jinja2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.utils.file_io import PathManager
from matplotlib.figure import Figure
from PIL import Image

from ..atomic_files import write_whole
from ..data import ClassSplit
from ..data.images import ImageReader
from ..visualization.figure import ROLE_COLORS
from ..visualization.overlays import class_color, crop_around, overlay
from .evaluator import EvaluationData
from .results import GROUPS, group_key

__all__ = ["write_report"]

_TASKS = {
    "bbox": "Boxes",
    "segm": "Masks",
    "gt-box-mask": "Masks at ground-truth boxes",
    "segm-filled-box": "Box masks (predicted boxes as masks)",
}
_CLASS_COLUMNS = {
    "box AP": ("bbox", "AP"),
    "mask AP": ("segm", "AP"),
    "mask IoU at ground-truth boxes": ("gt-box-mask", "IoU"),
}
_PAIRS_OF_EACH_KIND = 6
_MARGIN = 0.2
_PANEL_SIDE = 220
_GROUP_COLORS = {**ROLE_COLORS, "all": (0.2, 0.2, 0.2)}


def write_report(
    path: str,
    *,
    dataset_name: str,
    results: Dict[str, Dict[str, float]],
    data: EvaluationData,
    class_split: ClassSplit,
    metrics_file: Optional[str] = None,
    reader: Optional[ImageReader] = None,
) -> None:
    """Write an HTML page that holds all that it shows.

    Args:
        path: file to write; its folder is created.
        dataset_name: for the title.
        results: what `ContrastMaskEvaluator.evaluate` returns.
        data: of the same evaluation.
        class_split: base and novel classes.
        metrics_file: metrics.json of the training; need not exist.
        reader: reads images as RGB; None for one without options.
    """
    reader = reader or ImageReader("RGB")
    loader = jinja2.FileSystemLoader(os.path.dirname(__file__))
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    environment.filters["number"] = lambda x: "–" if math.isnan(x) else f"{x:.2f}"
    role = "novel" if class_split.novel else "base"
    masks = [x for x in data.gt_box_masks if class_split.role(x["category_id"]) == role]
    columns = {k: v for k, v in _CLASS_COLUMNS.items() if v[0] in results}
    page = environment.get_template("report.html").render(
        dataset_name=dataset_name,
        data=data,
        split=class_split,
        tables=[_table(title, results, task) for task, title in _TASKS.items() if task in results],
        **({"harmonic_mean": results["segm-harmonic"]["AP"]} if "segm" in results else {}),
        class_columns=list(columns),
        class_rows=_class_rows(results, class_split, columns.values()),
        precision_recall=_precision_recall_chart(data.precisions, class_split),
        training=_training_chart(_read_metrics(metrics_file)),
        role=role,
        num_masks=len(masks),
        gallery={
            kind: [_draw_pair(x, class_split, reader) for x in chosen]
            for kind, chosen in best_median_worst(masks, _PAIRS_OF_EACH_KIND).items()
        },
    )
    if os.path.dirname(path):
        PathManager.mkdirs(os.path.dirname(path))
    with write_whole(path, "w", encoding="utf-8") as f:
        f.write(page)


def _table(title, results, task):
    metrics = [x for x in results[task] if "-" not in x]
    rows = [(x, [results[group_key(task, x)][m] for m in metrics]) for x in GROUPS]
    return {"title": title, "metrics": metrics, "rows": rows}


def _class_rows(results, split, columns):
    """Name, role and numbers of each class: base classes first, by falling last number."""
    rows = [
        (name, split.role(i), [results[task][f"{metric}-{name}"] for task, metric in columns])
        for i, name in enumerate(split.class_names)
    ]
    roles = ("base", "novel", "unused")
    return sorted(rows, key=lambda x: (roles.index(x[1]), -np.nan_to_num(x[2][-1], nan=-1.0)))


def _precision_recall_chart(precisions, split):
    """Data URI; precision at each recall, mean over the classes of a group that have objects."""
    if not precisions:
        return None
    groups = {"base": split.base, "novel": split.novel, "all": range(len(split.class_names))}
    titles = {"bbox": "boxes", "segm": "masks"}
    figure = Figure(figsize=(4.6 * len(precisions), 3.8), layout="constrained")
    axes = figure.subplots(1, len(precisions), squeeze=False, sharey=True)[0]
    for ax, (task, precision) in zip(axes, precisions.items()):
        for group, ids in groups.items():
            for index, style in ((0, "-"), (5, "--")):  # IoU 0.50 and 0.75
                curves = precision[index, :, list(ids), 0]
                curves = curves[(curves > -1).all(axis=1)]
                if len(curves):
                    label = f"{group}, IoU {0.5 + 0.05 * index:.2f}"
                    recalls = np.linspace(0, 1, curves.shape[1])
                    ax.plot(recalls, curves.mean(0), style, color=_GROUP_COLORS[group], label=label)
        ax.set(title=titles[task], xlabel="recall", xlim=(0, 1), ylim=(0, 1))
        ax.grid(alpha=0.3)
        if ax.lines:
            ax.legend(fontsize="small")
    axes[0].set_ylabel("precision")
    return _chart_uri(figure)


def _training_chart(metrics):
    """Data URI; losses over the iterations and, after several evaluations, AP. None for no loss."""
    losses = _series(metrics, r"(val/)?total_loss|loss_.*")
    aps = {
        k: v for k, v in _series(metrics, r"(bbox|segm)(-base|-novel)?/AP").items() if len(v) > 1
    }
    panels = {title: series for title, series in (("losses", losses), ("AP", aps)) if series}
    if not losses:
        return None
    figure = Figure(figsize=(5.6 * len(panels) + 2, 3.8), layout="constrained")
    for ax, (title, series) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items()
    ):
        for key, points in sorted(series.items()):
            style = {"color": "black", "linewidth": 2} if key.endswith("total_loss") else {}
            style["linestyle"] = "--" if key.startswith("val/") else "-"
            ax.plot(*zip(*sorted(points.items())), label=key.replace("/AP", ""), **style)
        ax.set(title=title, xlabel="iteration")
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _chart_uri(figure)


def _series(metrics, pattern):
    """Key -> iteration -> value; the last of several values counts."""
    series = {}
    for line in metrics:
        for key, value in line.items():
            if re.fullmatch(pattern, key) and math.isfinite(value):
                series.setdefault(key, {})[line["iteration"]] = value
    return series


def _read_metrics(path):
    """The whole lines of metrics.json; training may be writing the last one."""
    if path is None or not PathManager.isfile(path):
        return []
    metrics = []
    with PathManager.open(path) as f:
        for line in f:
            try:
                metrics.append(json.loads(line))
            except ValueError:
                continue
    return [x for x in metrics if isinstance(x, dict) and "iteration" in x]


def best_median_worst(masks: List[dict], number: int) -> Dict[str, List[dict]]:
    """At most `number` masks of each kind, none of them twice.

    Args:
        masks: with "iou".
        number: of masks.
    """
    masks = sorted(masks, key=lambda x: -x["iou"])
    number = min(number, max(1, len(masks) // 3))
    middle = (len(masks) - number) // 2
    kinds = {
        "Best": masks[:number],
        "Median": masks[middle : middle + number] if len(masks) > 2 else [],
        "Worst": masks[-number:] if len(masks) > 1 else [],
    }
    return {kind: chosen for kind, chosen in kinds.items() if chosen}


def _draw_pair(x, split, reader):
    """Data URIs of the surroundings of a box with the true and with the predicted mask."""
    image = reader(x["file_name"])
    box = np.array(x["bbox"], dtype=np.float64)
    masks = [mask_util.decode(x[key]) for key in ("truth", "predicted")]
    (crop, *masks), offset = crop_around([image, *masks], box, _MARGIN)
    boxes = (box - np.tile(offset, 2))[None]
    color = class_color(x["category_id"], split)
    truth, predicted = (
        _jpeg_uri(overlay(crop, [color], boxes, masks=[mask], min_side=_PANEL_SIDE))
        for mask in masks
    )
    return {
        "truth": truth,
        "predicted": predicted,
        "class_name": split.class_names[x["category_id"]],
        "iou": x["iou"],
        "file_name": os.path.basename(x["file_name"]),
    }


def _jpeg_uri(image):
    picture = Image.fromarray(image)
    picture.thumbnail((_PANEL_SIDE * 2, _PANEL_SIDE * 2))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return _data_uri("jpeg", buffer)


def _chart_uri(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _data_uri("svg+xml", buffer)


def _data_uri(kind, buffer):
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
