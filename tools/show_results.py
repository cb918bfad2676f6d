#!/usr/bin/env python
"""Print the table of a finished evaluation: python tools/show_results.py output/.../results.json"""

import argparse
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from contrastmask.evaluation import format_results_table, read_results_json  # noqa: E402


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", help="results.json of an output folder")
    args = parser.parse_args(argv)
    try:
        print(format_results_table(read_results_json(args.results)))
    except (OSError, ValueError, KeyError) as error:
        print(f"show_results: {args.results}: {error!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
