"""Results of tools/run_study.py as tables and as a plot."""

import statistics
from typing import List, Optional

from matplotlib.figure import Figure
from tabulate import tabulate

from contrastmask.visualization.figure import ROLE_COLORS, save_png
from contrastmask.visualization.labels import literal

# Table -> its columns -> where the number stands in a result.
_TABLES = {
    "Masks for ground-truth boxes (mean IoU)": {
        "novel IoU": ("gt_box_mask", "novel", "IoU"),
        "base IoU": ("gt_box_mask", "base", "IoU"),
    },
    "Detections": {
        "novel mask AP": ("mask", "novel", "AP"),
        "base mask AP": ("mask", "base", "AP"),
        "all mask AP": ("mask", "all", "AP"),
        "novel mask AP50": ("mask", "novel", "AP50"),
        "base mask AP50": ("mask", "base", "AP50"),
        "all mask AP50": ("mask", "all", "AP50"),
        "box AP": ("box", "all", "AP"),
    },
    "Cost of a training": {
        "seconds": ("training", "seconds"),
        "peak memory, MiB": ("training", "peak_memory_mib"),
    },
}
_NUMBERS = {name: path for columns in _TABLES.values() for name, path in columns.items()}
_COMPARED = ("novel IoU", "base IoU", "novel mask AP", "base mask AP")
_PANELS = {"IoU": "mean IoU at ground-truth boxes (%)", "mask AP": "mask AP of detections"}


def summarize(results: List[dict], baseline: Optional[str] = None) -> List[dict]:
    """
    Args:
        results: from :func:`run_study`.
        baseline: name of a variant.

    Returns:
        For each variant "variant", "title", "seeds", "numbers", and "differences" from the runs of
        the baseline with the same seeds: name of the number -> "mean", "std" (of the sample; None
        for one seed) and "values". Values that could not be measured are left out.
    """
    groups = {}
    for result in results:
        groups.setdefault(result["variant"], []).append(result)
    reference = {x["seed"]: x for x in groups.get(baseline, ())}

    def difference(result, name):
        pair = _number(result, name), _number(reference.get(result["seed"]), name)
        return None if None in pair else pair[0] - pair[1]

    return [
        {
            "variant": variant,
            "title": group[0]["title"],
            "seeds": [x["seed"] for x in group],
            "numbers": {k: _statistics(_number(x, k) for x in group) for k in _NUMBERS},
            "differences": {k: _statistics(difference(x, k) for x in group) for k in _COMPARED},
        }
        for variant, group in groups.items()
    ]


def format_tables(summary: List[dict], baseline: Optional[str] = None) -> str:
    """Markdown tables with a row for each variant: mean ± standard deviation over the seeds, and
    of differences those of the single seeds in brackets."""

    def row(x, kind, columns):
        cells = {name: _cell(x[kind][name], kind == "differences") for name in columns}
        return {"variant": x["title"], "seeds": len(x["seeds"]), **cells}

    tables = {name: [row(x, "numbers", y) for x in summary] for name, y in _TABLES.items()}
    others = [x for x in summary if x["variant"] != baseline]
    if others and len(others) < len(summary):
        title = next(x["title"] for x in summary if x["variant"] == baseline)
        tables[f"Differences from {title}, runs with the same seed compared"] = [
            row(x, "differences", _COMPARED) for x in others
        ]
    return "\n".join(
        f"### {title}\n\n{tabulate(rows, 'keys', 'pipe', disable_numparse=True)}\n"
        for title, rows in tables.items()
    )


def plot(summary: List[dict], path: str) -> None:
    """Write a PNG with a dot for each run and a stroke for each mean."""
    figure = Figure(figsize=(11, 0.55 * len(summary) + 1.4), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(_PANELS), sharey=True)
    for ax, (number, title) in zip(axes, _PANELS.items()):
        for group, offset in (("novel", -0.15), ("base", 0.15)):
            color, label = ROLE_COLORS[group], f"{group} classes"
            for i, x in enumerate(summary):
                x, y = x["numbers"][f"{group} {number}"], i + offset
                ax.plot(x["values"], [y] * len(x["values"]), "o", color=color, label=label)
                ax.plot([x["mean"]], [y], "|", color=color, markersize=16)
                label = None
        ax.set_xlabel(title)
        ax.grid(alpha=0.3)
    axes[0].set_yticks(range(len(summary)), [literal(x["title"]) for x in summary])
    axes[0].invert_yaxis()
    axes[0].legend()
    save_png(figure, path)


def _number(result, name):
    for key in _NUMBERS[name]:
        result = result.get(key) if isinstance(result, dict) else None
    return result


def _statistics(values):
    values = [x for x in values if x is not None]
    return {
        "mean": statistics.mean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def _cell(x, is_difference):
    if x["mean"] is None:
        return "-"
    digits = 0 if x["mean"] >= 100 else 2
    text = f"{x['mean']:{'+' if is_difference else ''}.{digits}f}"
    if x["std"] is None:
        return text
    values = ", ".join(f"{value:+.2f}" for value in x["values"])
    return f"{text} ± {x['std']:.{digits}f}" + (f" ({values})" if is_difference else "")
