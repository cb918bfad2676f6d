#!/usr/bin/env python
"""
Train the variants of a study one after another, and compare them:

    python tools/run_study.py --study studies/shapes.yaml --output output/study

The same command goes on after an interruption. The output folder gets study.md (tables), study.json
and study.png; each run keeps its folder <variant>/seed<number> with all of its output. It
stops at a folder that was made with other settings, for example with another base config.
"""

import argparse
import ast
import json
import logging
import os
import sys

_ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")

from detectron2.utils.logger import setup_logger

from contrastmask.study import (
    format_study,
    load_study,
    plot_study,
    run_study,
    summarize_study,
)

_ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", required=True, help="YAML file: base config, seeds, variants")
    parser.add_argument("--output", required=True, help="folder for runs, tables and plot")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of those of the study")
    parser.add_argument("--num-gpus", type=int, default=0, help="for the trainings (default: 0)")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="settings of all runs"
    )
    args = parser.parse_args(argv)
    if len(args.opts) % 2:
        parser.error("--opts: give KEY VALUE pairs")
    return args


def _value(text):
    """As in a config on the command line: a Python literal, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main(argv=None) -> int:
    args = parse_args(argv)
    setup_logger(name="contrastmask")
    settings = {key: _value(value) for key, value in zip(args.opts[::2], args.opts[1::2])}
    program = os.path.normpath(os.path.join(_ROOT, "train_net.py"))
    try:
        study = load_study(args.study, variants=args.variants, seeds=args.seeds, settings=settings)
        results = run_study(study, args.output, program, num_gpus=args.num_gpus)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        logging.getLogger("contrastmask").debug("", exc_info=True)
        print(f"run_study: {error}", file=sys.stderr)
        return 1
    summary = summarize_study(results)
    tables = format_study(summary)
    with open(os.path.join(args.output, "study.md"), "w", encoding="utf-8") as f:
        f.write(tables)
    with open(os.path.join(args.output, "study.json"), "w", encoding="utf-8") as f:
        json.dump({"summary": summary, "results": results}, f, indent=2)
        f.write("\n")
    plot_study(summary, os.path.join(args.output, "study.png"))
    print(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
