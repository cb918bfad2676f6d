"""Results of an evaluation as a table and as a JSON file."""

import json
import math
import os

from detectron2.utils.file_io import PathManager
from tabulate import tabulate

GROUPS = ("base", "novel", "all")
# Name of each task in the results of the evaluator -> its name in the JSON file.
_JSON_NAMES = {
    "bbox": "box",
    "segm": "mask",
    "gt-box-mask": "gt_box_mask",
    "segm-filled-box": "filled_box_mask",
}
_ROWS = (
    ("box AP", "bbox", "AP"),
    ("box AP50", "bbox", "AP50"),
    ("mask AP", "segm", "AP"),
    ("mask AP50", "segm", "AP50"),
    ("mask IoU at ground-truth boxes", "gt-box-mask", "IoU"),
    ("CAM AUC at ground-truth boxes", "gt-box-mask", "CAM_AUC"),
    ("mask AP, box masks", "segm-filled-box", "AP"),
    ("mask AP50, box masks", "segm-filled-box", "AP50"),
)


def group_key(task, group):
    """Key of a group of classes ("base", "novel", "all") in the results of the evaluator."""
    return task if group == "all" else f"{task}-{group}"


def format_results_table(results, others=None):
    """Format the main numbers for base, novel and all classes.

    Args:
        results (dict[str, dict[str, float]]): what `ContrastMaskEvaluator.evaluate` returns.
        others (dict[str, dict] or None): title -> the same, of models to compare with, whose masks
            are shown as well.

    Returns:
        str: a table with the rows box AP, mask AP and so on that `results` has, and below it the
        harmonic mean of base and novel mask AP. "-" stands for what cannot be measured.
    """
    rows = [_row(title, results, task, metric) for title, task, metric in _ROWS if task in results]
    rows += [
        _row(f"{title}, {name}", other, task, metric)
        for name, other in (others or {}).items()
        for title, task, metric in _ROWS
        if task in other and task in ("segm", "gt-box-mask") and metric != "CAM_AUC"
    ]
    table = tabulate(
        rows,
        headers=["", *GROUPS],
        tablefmt="pipe",
        colalign=("left", "right", "right", "right"),
        disable_numparse=True,
    )
    if "segm-harmonic" in results:
        mean = _cell(results["segm-harmonic"]["AP"])
        table += f"\nHarmonic mean of base and novel mask AP: {mean}"
    return table


def write_results_json(results, path, class_split=None):
    """Write the results of one dataset to a JSON file.

    Layout, values in percent, null where a number cannot be measured::

        {
          "box":  {"base": {"AP": .., "AP50": .., "AP75": .., "APs": .., "APm": .., "APl": ..},
                   "novel": {..}, "all": {..}, "per_class": {"<class name>": AP, ..}},
          "mask": {same as "box", and "harmonic_mean": of base and novel AP},
          "gt_box_mask": {"base": {"IoU": .., "CAM_AUC": ..}, "novel": {..}, "all": {..},
                          "per_class": {IoU}},
          "filled_box_mask": {"base": {"AP": .., ..}, "novel": {..}, "all": {..}},
          "classes": {"base": ["<class name>", ..], "novel": [..]}
        }

    "gt_box_mask" is the mean IoU of the masks that are predicted for ground-truth boxes, and how
    well CAMs tell the objects from what is around them (50 is chance);
    "filled_box_mask" what the boxes of the detections would give as masks ("box masks"). The three
    of masks are there only if they were evaluated, "classes" only if `class_split` is given.

    Args:
        results (dict[str, dict[str, float]]): what `ContrastMaskEvaluator.evaluate` returns.
        path (str): file to write; its folder is created.
        class_split (ClassSplit or None): names the base and novel classes in the file.
    """
    report = results_for_json(results, class_split)
    if os.path.dirname(path):
        PathManager.mkdirs(os.path.dirname(path))
    with PathManager.open(path, "w") as f:
        json.dump(report, f, indent=2, allow_nan=False)
        f.write("\n")


def results_for_json(results, class_split=None):
    """The content of the file of :func:`write_results_json`.

    Args:
        results (dict[str, dict[str, float]]): what `ContrastMaskEvaluator.evaluate` returns.
        class_split (ClassSplit or None): names the base and novel classes.

    Returns:
        dict[str, dict]: None where a number cannot be measured.
    """
    report = {}
    for task, name in _JSON_NAMES.items():
        if task not in results:
            continue
        report[name] = {
            group: {
                k: _number(v) for k, v in results[group_key(task, group)].items() if "-" not in k
            }
            for group in GROUPS
        }
        of_classes = {k.split("-", 1)[1]: _number(v) for k, v in results[task].items() if "-" in k}
        if of_classes:
            report[name]["per_class"] = of_classes
    if "segm-harmonic" in results:
        report["mask"]["harmonic_mean"] = _number(results["segm-harmonic"]["AP"])
    if class_split is not None:
        names = class_split.class_names
        report["classes"] = {
            "base": [names[i] for i in class_split.base],
            "novel": [names[i] for i in class_split.novel],
        }
    return report


def read_results_json(path):
    """Read a file that `write_results_json` wrote.

    Args:
        path (str):

    Returns:
        dict[str, dict[str, float]]: what :func:`format_results_table` takes.
    """
    with PathManager.open(path) as f:
        try:
            report = json.load(f)
        except ValueError as error:
            raise ValueError(f"{path}: is not JSON, or was cut off: {error}") from None
    results = {
        group_key(task, group): {m: _value(v) for m, v in report[name][group].items()}
        for task, name in _JSON_NAMES.items()
        if name in report
        for group in GROUPS
    }
    if "harmonic_mean" in report.get("mask", {}):
        results["segm-harmonic"] = {"AP": _value(report["mask"]["harmonic_mean"])}
    return results


def _row(title, results, task, metric):
    numbers = [results.get(group_key(task, group), {}).get(metric) for group in GROUPS]
    return [title, *map(_cell, numbers)]


def _value(number):
    return float("nan") if number is None else number


def _cell(value):
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def _number(value):
    return None if math.isnan(value) else float(value)
