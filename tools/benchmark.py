#!/usr/bin/env python
"""
Measure speed and memory, each as a comparison within one run: medians, spread, ratios.

    python tools/benchmark.py --parts pixel_sets branch --json output/benchmark.json
    python tools/benchmark.py --quick        # a test of the benchmark itself

docs/PERFORMANCE.md says what the parts measure and which numbers to expect.
"""

import argparse
import json
import logging
import os
import sys

import torch

from contrastmask.benchmark import (
    PARTS,
    Settings,
    describe_machine,
    keep_freed_memory,
)
from contrastmask.benchmark.tables import format_rows

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all"
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=["float32", "bfloat16", "float16"],
        help="precisions of branch and model, the lower ones by autocast (default: float32, and "
        "on a GPU float16 as well)",
    )
    parser.add_argument(
        "--rois", nargs="+", type=int, help="RoI counts of pixel_sets, branch, self_similarity"
    )
    parser.add_argument(
        "--classes", nargs="+", type=int, default=[80, 1200, 3000], help="default: 80 1200 3000"
    )
    parser.add_argument(
        "--config-file",
        default=os.path.join(ROOT, "configs", "quickstart.yaml"),
        help="of the parts model and mapper (default: configs/quickstart.yaml)",
    )
    parser.add_argument("--images", type=int, help="images of coco_eval (default: 5000)")
    parser.add_argument("--repeats", type=int, help="measurements of each function")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to this file")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to test the benchmark itself"
    )
    parser.add_argument("opts", nargs="*", help="KEY VALUE overrides of the config, after --")
    args = parser.parse_args(argv)
    for name in ("rois", "classes", "images", "repeats", "threads"):
        value = getattr(args, name)
        if value is not None and min(value if isinstance(value, list) else [value]) < 1:
            parser.error(f"--{name} has to be at least 1")
    if args.dtype is None:
        on_gpu = torch.device(args.device).type == "cuda"
        args.dtype = ["float32", "float16"] if on_gpu else ["float32"]
    return args


def main(argv=None):
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = Settings(
        config_file=args.config_file,
        device=args.device,
        dtypes=args.dtype,
        rois=args.rois,
        classes=args.classes,
        opts=args.opts,
        images=args.images,
        repeats=args.repeats,
        quick=args.quick,
    )
    machine = {**describe_machine(args.device), "keeps freed memory": keep_freed_memory()}
    results = {"machine": machine, "settings": vars(args), "parts": {}}
    print(", ".join(f"{k} {v}" for k, v in results["machine"].items()), flush=True)
    for name in args.parts:
        run, title = PARTS[name]
        rows = run(settings)
        results["parts"][name] = rows
        print(f"\n## {title} ({name})\n\n{format_rows(rows)}", flush=True)
        if args.json:  # after each part: a run that is stopped leaves what it has
            os.makedirs(os.path.dirname(os.path.abspath(args.json)), exist_ok=True)
            with open(args.json, "w") as file:
                json.dump(results, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
