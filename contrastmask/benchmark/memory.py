"""Peak memory of a function."""

import gc

import torch
from torch.profiler import ProfilerActivity, profile


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
