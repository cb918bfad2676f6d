"""Charts as SVG text for an HTML page."""

import contextlib
import io
import math
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...visualization.figure import ROLE_COLORS
from ...visualization.labels import literal

_MAX_NAMED_CLASSES = 100
_GROUP_COLORS = {"base": ROLE_COLORS["base"], "novel": ROLE_COLORS["novel"], "all": (0.2, 0.2, 0.2)}
_RECALLS = np.linspace(0, 1, 101)


def class_ap_chart(aps, class_split, box_aps=None):
    """A bar for the AP of each class, by role and value, with its box AP as a dot.

    Args:
        aps (dict[str, float]): class name -> AP in percent; NaN where it cannot be measured.
        class_split (ClassSplit): gives the roles.
        box_aps (dict[str, float] or None): class name -> box AP.

    Returns:
        str: SVG.
    """
    roles = [(role, getattr(class_split, role)) for role in ("base", "novel", "unused")]
    bars = [
        (role, name, aps.get(name, math.nan))
        for role, ids in roles
        for name in sorted(
            (class_split.class_names[i] for i in ids),
            key=lambda name: -np.nan_to_num(aps.get(name, math.nan), nan=-1.0),
        )
    ]
    is_named = len(bars) <= _MAX_NAMED_CLASSES
    with _svg("class-ap") as chart:
        height = 0.22 * len(bars) + 1 if is_named else 8
        figure = Figure(figsize=(8, height), layout="constrained")
        ax = figure.subplots()
        positions = np.arange(len(bars))
        values = np.array([value for _, _, value in bars])
        colors = [ROLE_COLORS[role] for role, _, _ in bars]
        if is_named:
            ax.barh(positions, np.nan_to_num(values), color=colors)
        else:  # one object instead of thousands
            ax.hlines(positions, 0, np.nan_to_num(values), colors=colors, linewidth=0.5)
            ax.set_xlim(left=0)
        handles = [Patch(color=ROLE_COLORS[r], label=f"{r} ({len(i)})") for r, i in roles if i]
        if box_aps is not None and is_named:
            dots = [box_aps.get(name, math.nan) for _, name, _ in bars]
            handles += ax.plot(dots, positions, "o", color="black", markersize=3, label="box AP")
        ax.set_yticks(positions if is_named else [])
        if is_named:
            labels = [n if value == value else f"{n} (not measured)" for _, n, value in bars]
            ax.set_yticklabels(map(literal, labels))
        else:
            ax.set_ylabel(f"{len(bars)} classes")
        ax.set_ylim(len(bars) - 0.4, -0.6)
        ax.set_xlabel("AP")
        ax.set_axisbelow(True)
        ax.grid(axis="x", alpha=0.3)
        ax.legend(handles=handles, loc="lower right")
        chart.figure = figure
    return chart.text


def precision_recall_chart(precisions, class_split):
    """Precision at each recall, mean over the classes of a group.

    Args:
        precisions (dict[str, ndarray]): title -> (T, R, K, A) from `coco_precision`.
        class_split (ClassSplit): gives the groups.

    Returns:
        str: SVG.
    """
    groups = {"base": class_split.base, "novel": class_split.novel}
    groups["all"] = range(len(class_split.class_names))
    with _svg("precision-recall") as chart:
        figure = Figure(figsize=(4.6 * len(precisions), 3.8), layout="constrained")
        axes = figure.subplots(1, len(precisions), squeeze=False, sharey=True)[0]
        for ax, (title, precision) in zip(axes, precisions.items()):
            for group, ids in groups.items():
                for index, style in ((0, "-"), (5, "--")):
                    curve = _mean_curve(precision[index, :, list(ids), 0])
                    if curve is not None:
                        iou = 0.5 + 0.05 * index
                        label = f"{group}, IoU {iou:.2f}"
                        ax.plot(_RECALLS, curve, style, color=_GROUP_COLORS[group], label=label)
            ax.set_title(title)
            ax.set_xlabel("recall")
            ax.set_xlim(0, 1)
            ax.set_ylim(0, 1)
            ax.grid(alpha=0.3)
            if ax.lines:
                ax.legend(fontsize="small")
        axes[0].set_ylabel("precision")
        chart.figure = figure
    return chart.text


def training_chart(metrics):
    """Losses over the iterations and, if there was more than one evaluation, AP.

    Args:
        metrics (list[dict]): lines of metrics.json, with "iteration".

    Returns:
        str or None: SVG; None if there is nothing to draw.
    """
    losses = _series(metrics, lambda key: key == "total_loss" or key.startswith("loss_"))
    aps = _series(metrics, lambda key: re.fullmatch(r"(bbox|segm)(-base|-novel)?/AP", key))
    aps = {key: points for key, points in aps.items() if len(points) > 1}
    panels = [("losses", losses)] + [("AP", aps)] * bool(aps)
    if not losses:
        return None
    with _svg("training") as chart:
        figure = Figure(figsize=(5.6 * len(panels) + 2, 3.8), layout="constrained")
        for ax, (title, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            for key, points in sorted(series.items()):
                style = {"color": "black", "linewidth": 2} if key == "total_loss" else {}
                marker = "." if len(points) < 3 else None
                ax.plot(*zip(*points), label=key.replace("/AP", ""), marker=marker, **style)
            ax.set_title(title)
            ax.set_xlabel("iteration")
            ax.set_ylim(bottom=0)
            ax.grid(alpha=0.3)
            ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        chart.figure = figure
    return chart.text


class _Chart:
    figure = None
    text = ""


@contextlib.contextmanager
def _svg(name):
    """Gives an object whose `figure` is turned into its `text` at the end."""
    chart = _Chart()
    # Text stays text; ids of different charts on one page differ.
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "svg.id": name}
    settings = {k: v for k, v in settings.items() if k in matplotlib.rcParams}
    with matplotlib.rc_context({**settings, "font.family": "sans-serif"}):
        yield chart
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        chart.figure.savefig(buffer, format="svg", metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Elements of different charts must not share an id.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    chart.text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", text)


def _mean_curve(precision):
    """Mean of (K, R) over the classes that have ground truth, or None without such a class."""
    precision = precision[(precision > -1).all(axis=1)]
    return precision.mean(axis=0) if len(precision) else None


def _series(metrics, is_wanted):
    """Key -> list of (iteration, value), by iteration; the last of several values counts."""
    series = {}
    for line in metrics:
        for key, value in line.items():
            if is_wanted(key) and isinstance(value, (int, float)) and math.isfinite(value):
                series.setdefault(key, {})[line["iteration"]] = value
    return {key: sorted(points.items()) for key, points in series.items()}
