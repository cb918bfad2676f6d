#!/usr/bin/env python
"""Print the table of a finished evaluation: python tools/show_results.py output/.../results.json"""

import argparse
import json
import sys

from contrastmask.engine.programs import program
from contrastmask.evaluation import format_results_table, read_results_json


@program
def main(argv=None):
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
    results = read_results_json(args.results)
    others, commands = {}, []
    for path in args.recorded:
        others_results = read_results_json(path)
        try:
            with open(path, encoding="utf-8") as f:
                record = json.load(f)["recorded"]
            others[f"{record['title']} (recorded)"] = others_results
            commands.append(record["command"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: the key 'recorded' needs 'title' and 'command'") from error
    print(format_results_table(results, others))
    for command in commands:
        print(f"Recorded with: {command}")


if __name__ == "__main__":
    sys.exit(main())
