"""Memory: the peak of a function, and how the C library handles it."""

import ctypes
import gc

import torch
from torch.profiler import ProfilerActivity, profile

# Parameters of mallopt in glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory():
    """
    Let the C library keep freed memory for the next tensor, as PyTorch does itself on a GPU. By
    default glibc gives large blocks back, and every new tensor above 32 MB costs page faults, which
    take longer than the operation that fills it. Where there is no glibc nothing happens.

    Returns:
        bool: whether it worked.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))  # -1: never


def peak_memory(function, device):
    """
    Args:
        function (callable): without arguments.
        device (str): whose memory counts.

    Returns:
        int: bytes that tensors take at most while the function runs, beyond those that existed
        before. On the CPU that is what PyTorch allocates, without the buffers of its libraries.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    allocated = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak
