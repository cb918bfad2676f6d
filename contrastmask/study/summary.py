"""Mean and standard deviation over the seeds of a study."""

import statistics

from tabulate import tabulate

__all__ = ["format_study", "summarize_study"]

# Table -> its columns: title, and where the number stands in a result.
_TABLES = {
    "Masks for ground-truth boxes (mean IoU)": (
        ("novel IoU", ("gt_box_mask", "novel", "IoU")),
        ("base IoU", ("gt_box_mask", "base", "IoU")),
    ),
    "Detections": (
        ("novel mask AP", ("mask", "novel", "AP")),
        ("base mask AP", ("mask", "base", "AP")),
        ("all mask AP", ("mask", "all", "AP")),
        ("novel mask AP50", ("mask", "novel", "AP50")),
        ("base mask AP50", ("mask", "base", "AP50")),
        ("all mask AP50", ("mask", "all", "AP50")),
        ("box AP", ("box", "all", "AP")),
    ),
    "Cost of a training": (
        ("seconds", ("training", "seconds")),
        ("peak memory, MiB", ("training", "peak_memory_mib")),
    ),
}


def summarize_study(results):
    """
    Args:
        results (list[dict]): from :func:`run_study`.

    Returns:
        list[dict]: one for each variant, in the order of the results: "variant", "title", "seeds",
        and "numbers": name of the number -> "mean", "std" (of the sample; None for one seed) and
        "values". Values that could not be measured are left out.
    """
    groups = {}
    for result in results:
        groups.setdefault(result["variant"], []).append(result)
    return [
        {
            "variant": variant,
            "title": group[0]["title"],
            "seeds": [x["seed"] for x in group],
            "numbers": {
                title: _statistics([_look_up(x, path) for x in group])
                for columns in _TABLES.values()
                for title, path in columns
            },
        }
        for variant, group in groups.items()
    ]


def format_study(summary):
    """
    Args:
        summary (list[dict]): from :func:`summarize_study`.

    Returns:
        str: Markdown tables, a row for each variant, mean ± standard deviation over the seeds.
    """
    parts = []
    for title, columns in _TABLES.items():
        rows = [
            [x["title"], len(x["seeds"])] + [_cell(x["numbers"][name]) for name, _ in columns]
            for x in summary
        ]
        headers = ["variant", "seeds"] + [name for name, _ in columns]
        table = tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)
        parts.append(f"### {title}\n\n{table}\n")
    return "\n".join(parts)


def _look_up(result, path):
    for key in path:
        result = result.get(key) if isinstance(result, dict) else None
    return result


def _statistics(values):
    values = [x for x in values if x is not None and x == x]
    return {
        "mean": statistics.mean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def _cell(number):
    if number["mean"] is None:
        return "-"
    digits = 0 if number["mean"] >= 100 else 2
    text = f"{number['mean']:.{digits}f}"
    return text if number["std"] is None else f"{text} ± {number['std']:.{digits}f}"
