"""The plot of a study."""

from matplotlib.figure import Figure

from ..visualization.figure import ROLE_COLORS, save_png
from ..visualization.labels import literal

__all__ = ["plot_study"]

_PANELS = (
    ("IoU", "mean IoU at ground-truth boxes (%)"),
    ("mask AP", "mask AP of detections"),
)
_DPI = 120


def plot_study(summary, path):
    """
    Write a PNG: for each variant the mean over the seeds as a bar, and each seed as a dot, for
    novel and for base classes.

    Args:
        summary (list[dict]): from :func:`summarize_study`.
        path (str):
    """
    figure = Figure(figsize=(11, 0.55 * len(summary) + 1.4), dpi=_DPI, layout="constrained")
    axes = figure.subplots(1, len(_PANELS), sharey=True)
    for ax, (number, title) in zip(axes, _PANELS):
        shown = []
        for group, offset in (("novel", -0.2), ("base", 0.2)):
            numbers = [x["numbers"][f"{group} {number}"] for x in summary]
            places = [i + offset for i in range(len(summary))]
            means = [x["mean"] or 0.0 for x in numbers]
            ax.barh(places, means, height=0.38, color=ROLE_COLORS[group], label=f"{group} classes")
            for place, x in zip(places, numbers):
                ax.plot(x["values"], [place] * len(x["values"]), ".", color="black", markersize=4)
                shown += x["values"]
        if shown:  # differences are small beside the values
            margin = 0.25 * (max(shown) - min(shown)) + 1e-3
            ax.set_xlim(max(min(shown) - margin, 0), max(shown) + margin)
        ax.set_xlabel(f"{title}\n(the axis does not start at 0)")
        ax.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(summary)), [literal(x["title"]) for x in summary])
    axes[0].invert_yaxis()
    axes[0].legend(loc="best", fontsize="small")
    save_png(figure, path)
