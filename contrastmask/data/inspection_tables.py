"""The result of an inspection as tables."""

import numpy as np
from tabulate import tabulate

__all__ = ["format_classes", "format_problems"]

_CLASS_HEADERS = (
    "class",
    "role",
    "instances",
    "with a mask",
    "median box (px)",
    "median mask (px)",
    "mask / box",
)


def format_classes(inspection, class_split=None) -> str:
    """
    Args:
        inspection (Inspection):
        class_split (ClassSplit or None): None where it could not be made; roles are then "?".

    Returns:
        str: a table of the classes, and a line with the sums.
    """
    roles = {}
    if class_split is not None:
        for role in ("base", "novel", "unused"):
            roles.update((class_split.class_names[i], role) for i in getattr(class_split, role))
    rows = []
    for name, numbers in zip(inspection.class_names, inspection.statistics):
        rows.append([name, roles.get(name, "?"), numbers.num_instances, numbers.num_masks])
        rows[-1] += _median_sizes(numbers)
    table = tabulate(
        rows,
        headers=_CLASS_HEADERS,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left", "left", *["right"] * 5),
    )
    num_instances = sum(numbers.num_instances for numbers in inspection.statistics)
    num_masks = sum(numbers.num_masks for numbers in inspection.statistics)
    return (
        f"{table}\n{len(rows)} classes, {num_instances} instances, {num_masks} with a mask, "
        f"in {len(inspection.records)} usable images"
    )


def format_problems(inspection) -> str:
    """A table of all problems, errors first."""
    if not inspection.problems:
        return "No problems found."
    rows = [
        ["error" if p.is_error else "warning", p.what, len(p.where), p.examples()]
        for p in inspection.problems
    ]
    return tabulate(rows, headers=["", "problem", "number", "where"], tablefmt="pipe")


def _median_sizes(numbers):
    if not numbers.num_instances:
        return ["-", "-", "-"]
    width, height = np.median(np.array(numbers.box_sizes, dtype=float), axis=0)
    if not numbers.num_masks:
        return [f"{width:.0f} x {height:.0f}", "-", "-"]
    area = np.median(numbers.mask_areas)
    return [f"{width:.0f} x {height:.0f}", f"{area:.0f}", f"{area / (width * height):.2f}"]
