#!/usr/bin/env python
"""Print the table of a finished evaluation: python tools/show_results.py output/.../results.json"""

import argparse
import json
import sys

from contrastmask.evaluation import format_results_table, read_results_json


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", help="results.json of an output folder")
    parser.add_argument(
        "--recorded",
        nargs="+",
        default=[],
        metavar="FILE",
        help="results.json of other models, recorded with the key 'recorded': "
        "{'title': its name, 'command': how it was made}",
    )
    args = parser.parse_args(argv)
    path = args.results
    try:
        results = read_results_json(path)
        others, commands = {}, []
        for path in args.recorded:
            with open(path, encoding="utf-8") as f:
                record = json.load(f)["recorded"]
            others[f"{record['title']} (recorded)"] = read_results_json(path)
            commands.append(record["command"])
        print(format_results_table(results, others))
        for command in commands:
            print(f"Recorded with: {command}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"show_results: {path}: {error!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
