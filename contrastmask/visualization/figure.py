"""Putting pictures side by side."""

import os

from detectron2.utils.file_io import PathManager
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .labels import literal
from .overlays import BASE_COLOR, NOVEL_COLOR, UNUSED_COLOR

_DPI = 120
ROLE_COLORS = {"base": BASE_COLOR, "novel": NOVEL_COLOR, "unused": UNUSED_COLOR}


def arrange_panels(
    rows, *, column_titles=None, row_titles=None, legend_title=None, roles=(), row_inches=3.0
):
    """Lay out images in a grid.

    Args:
        rows (list[list[ndarray]]): images (H, W, 3), uint8, RGB; rows may have unequal lengths.
        column_titles (list[str] or None): one for each column.
        row_titles (list[str] or None): one for each row.
        legend_title (str or None): above the legend that explains the colors of `roles`.
        roles (sequence[str]): of "base", "novel" and "unused"; none gives no legend.
        row_inches (float): height of a row.

    Returns:
        matplotlib.figure.Figure:
    """
    num_columns = max(len(panels) for panels in rows)
    aspect = max(panel.shape[1] / panel.shape[0] for panels in rows for panel in panels)
    size = (row_inches * aspect * num_columns, row_inches * len(rows) + 0.6)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    axes = figure.subplots(len(rows), num_columns, squeeze=False)
    for index, panels in enumerate(rows):
        for ax, panel in zip(axes[index], panels):
            ax.imshow(panel)
        for ax in axes[index]:
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        if row_titles is not None:
            title = literal(row_titles[index])
            axes[index, 0].set_ylabel(title, rotation=0, ha="right", va="center")
    for ax, title in zip(axes[0], column_titles or ()):
        ax.set_title(title)
    if roles:
        figure.legend(
            handles=[Patch(color=ROLE_COLORS[role], label=f"{role} class") for role in roles],
            title=legend_title,
            loc="outside lower center",
            ncols=len(roles),
            frameon=False,
        )
    return figure


def save_png(figure, path):
    """Write a figure to a PNG file; its folder is created."""
    if os.path.dirname(path):
        PathManager.mkdirs(os.path.dirname(path))
    with PathManager.open(path, "wb") as f:
        figure.savefig(f, format="png")
