"""Rows of a benchmark as text."""

from tabulate import tabulate


def format_rows(rows):
    """
    Args:
        rows (list[dict]): from a part of the benchmark.

    Returns:
        str: a table; below it a smaller one for each row with a list of (name, share) pairs.
    """
    plain = [{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows]
    texts = [tabulate(plain, headers="keys", tablefmt="pipe", floatfmt=".4g")]
    for row in rows:
        for name, value in row.items():
            if isinstance(value, list):
                of = ", ".join(str(v) for v in row.values() if isinstance(v, str))
                pairs = [(k, f"{share:.1%}") for k, share in value]
                texts.append(tabulate(pairs, headers=[f"{name}: {of}", "share"], tablefmt="pipe"))
    return "\n\n".join(texts)
