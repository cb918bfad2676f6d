#!/usr/bin/env python
"""
Measure speed and memory, each as a comparison within one run:

    python tools/benchmark.py --parts pixel_sets branch --json output/benchmark.json
    python tools/benchmark.py --parts model --variant deep MODEL.ROI_MASK_HEAD.NUM_CONV 8
    python tools/benchmark.py --quick        # a test of the benchmark itself

Functions that are compared run in turn, so that all see the same disturbances. Tables have the
median time in milliseconds with its 10th and 90th percentile, the processor time of all threads,
peak memory in MB, and ratios to the first function. docs/PERFORMANCE.md says which numbers to
expect.
"""

import argparse
import ctypes
import gc
import json
import os
import sys
import time
from typing import Callable, List, Optional

import benchmark_data as data
import benchmark_inference
import benchmark_parts as parts
import numpy as np
import torch
from benchmark_parts import Comparison
from detectron2.utils.collect_env import collect_env_info
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark.utils.timer import timer

from contrastmask.engine.programs import parse_args, program

_MODEL_PARTS = (parts.pixel_sets, parts.branch, parts.cam, parts.self_similarity, parts.model)
_DATA_PARTS = (parts.mapper, data.coco_eval, data.coco_size)
PARTS = {x.__name__: x for x in (*_MODEL_PARTS, benchmark_inference.inference, *_DATA_PARTS)}
_SIZES = {"channels": 256, "side": 28, "rois": None, "detections": [10, 100], "images": 5000}
_QUICK = {"channels": 8, "side": 14, "rois": [2, 4], "detections": [3], "images": 10, "repeats": 1}
# Parameters of mallopt in glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def measure(comparison: Comparison, device: str, repeats: Optional[int] = None) -> List[dict]:
    """
    Args:
        comparison: what to measure.
        device: whose memory counts.
        repeats: instead of the number of the comparison.

    Returns:
        A row of the table for each function.
    """
    functions, warmup = comparison.functions, comparison.warmup
    seconds, returned, peaks, rows = {name: [] for name in functions}, {}, [], []
    for i in range(warmup + (repeats or comparison.repeats)):
        for name, function in functions.items():
            begin = timer(), time.process_time()  # the first waits for a GPU
            returned[name] = function()
            end = timer(), time.process_time()
            if i >= warmup:
                seconds[name].append(np.subtract(end, begin))
    reference = np.array(seconds[next(iter(functions))])
    for name, function in functions.items():
        times = 1e3 * np.array(seconds[name])  # wall clock and processor
        low, median, high = np.percentile(times[:, 0], (10, 50, 90))
        ratio, cpu_ratio = np.median(seconds[name] / reference, axis=0)
        row = {**comparison.labels, "what": name, "ms": median, "p10": low, "p90": high}
        row.update({"ratio": ratio, "cpu ms": np.median(times[:, 1]), "cpu ratio": cpu_ratio})
        if comparison.has_memory:
            peaks.append(peak_memory(function, device))
            row.update({"peak MB": peaks[-1] / 1e6, "peak ratio": peaks[-1] / peaks[0]})
        rows.append({**row, **(returned[name] or {})})
    return rows


def peak_memory(function: Callable[[], object], device: str) -> int:
    """
    Bytes that tensors take at most while a function runs, beyond those that existed before. On the
    CPU that is what PyTorch allocates, without the buffers of its libraries.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    return max(np.cumsum([x.nbytes() for x in events if x.name() == "[memory]"]), default=0)


def operators(function: Callable[[], object], device: str) -> str:
    """A table of the operators that take most time themselves."""
    with profile() as profiler:
        function()
    key = f"self_{torch.device(device).type}_time_total"
    return profiler.key_averages().table(sort_by=key, row_limit=8, max_name_column_width=40)


def keep_freed_memory() -> bool:
    """
    Let the C library keep freed memory for the next tensor, as PyTorch does on a GPU. glibc gives
    large blocks back, and page faults of the next ones take longer than what is to be measured.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))  # -1: never


def _positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def _parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    dtypes = ["float32", "bfloat16", "float16"]
    add(
        "--dtype",
        nargs="+",
        choices=dtypes,
        default=dtypes[:1],
        help="of branch, model, inference",
    )
    add("--rois", nargs="+", type=_positive, help="of pixel_sets, branch and self_similarity")
    add("--classes", nargs="+", type=_positive, default=[80, 1200, 3000], help="of cam")
    add("--config-file", default="quickstart.yaml", help="of model, inference and mapper")
    add(
        "--variant",
        nargs="+",
        action="append",
        metavar=("NAME", "KEY VALUE"),
        help="of model: a name, and what to set for it. Can be repeated. Default: ContrastMask "
        "without and with box supervision",
    )
    add(
        "--detections",
        nargs="+",
        type=_positive,
        help="in an image; default: 10 100",
    )
    add("--images", type=_positive, help="of coco_eval; default: 5000")
    add("--repeats", type=_positive, help="measurements of each function")
    add("--threads", type=_positive, default=torch.get_num_threads(), help="of PyTorch on the CPU")
    add("--compile", action="store_true", help="of inference: also torch.compile, for minutes")
    add("--profile", action="store_true", help="also print which operators take most time")
    add("--json", metavar="FILE", help="also write the numbers to this file")
    add("--quick", action="store_true", help="tiny sizes: the numbers mean nothing")
    parser.set_defaults(**_SIZES)
    if parser.parse_known_args(argv)[0].quick:
        parser.set_defaults(**_QUICK)
    return parse_args(parser, argv)


@program
def main(argv=None):
    args = _parse_args(argv)
    torch.set_num_threads(args.threads)
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "threads": args.threads,
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "keeps freed memory": keep_freed_memory(),
        "environment": collect_env_info().split("PyTorch built with")[0],
    }
    results = {"machine": machine, "arguments": vars(args), "parts": {}}
    print("\n".join(f"{k}: {v}" for k, v in machine.items()), flush=True)
    for part in args.parts:
        print(f"\n## {PARTS[part].__doc__.splitlines()[0]} ({part})", flush=True)
        torch.manual_seed(0)
        rows = results["parts"][part] = []
        for comparison in PARTS[part](args):
            new = measure(comparison, args.device, args.repeats)
            rows += new
            print(f"\n{tabulate(new, 'keys', 'pipe', floatfmt='.4g')}", flush=True)
            for name, function in comparison.functions.items() if args.profile else ():
                print(f"\n{name}\n{operators(function, args.device)}", flush=True)
            if args.json:  # after each: a run that is stopped leaves what it has
                os.makedirs(os.path.dirname(os.path.abspath(args.json)), exist_ok=True)
                with open(args.json, "w", encoding="utf-8") as f:
                    json.dump(results, f, indent=1, default=float)


if __name__ == "__main__":
    sys.exit(main())
