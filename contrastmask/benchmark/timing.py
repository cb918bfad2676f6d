"""Time of functions, measured in turn so that all see the same disturbances."""

import time
from typing import NamedTuple, Sequence

import numpy as np
import torch


class Timing(NamedTuple):
    """
    wall (sequence[float]): seconds of each measurement.
    cpu (sequence[float]): seconds of processor time of each, all threads together.
    """

    wall: Sequence[float]
    cpu: Sequence[float]

    @property
    def median(self):
        """float: seconds."""
        return float(np.median(self.wall))

    def columns(self):
        """dict: columns of a table: median and spread (10th to 90th percentile), milliseconds."""
        low, high = np.percentile(self.wall, [10, 90]) * 1e3
        return {
            "ms": self.median * 1e3,
            "ms p10": float(low),
            "ms p90": float(high),
            "cpu ms": float(np.median(self.cpu)) * 1e3,
        }


def compare(functions, repeats, device, warmup=1):
    """
    Args:
        functions (dict[str, callable]): without arguments.
        repeats (int): measurements of each, in turn: first, second, ..., first, second, ...
        device (str): of the work, which is waited for.
        warmup (int): calls of each function before.

    Returns:
        dict[str, Timing]: under the same names.
    """
    for function in functions.values():
        for _ in range(warmup):
            function()
    measured = {name: ([], []) for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            _wait(device)
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            _wait(device)
            measured[name][0].append(time.perf_counter() - wall)
            measured[name][1].append(time.process_time() - cpu)
    return {name: Timing(*values) for name, values in measured.items()}


def ratio(timing, reference):
    """float: median over rounds of the time of `timing` relative to `reference`."""
    return float(np.median(np.asarray(timing.wall) / np.asarray(reference.wall)))


def _wait(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
