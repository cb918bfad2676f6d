"""The machine and the versions that numbers belong to."""

import os
import platform
from importlib import import_module

import torch

_PACKAGES = ("torch", "torchvision", "detectron2", "numpy", "cv2", "pycocotools", "hotcoco")


def describe_machine(device):
    """
    Args:
        device (str): torch device of the run.

    Returns:
        dict[str, str or int]: processor, cores that may be used, threads, GPU, versions.
    """
    description = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "device": device,
        "python": platform.python_version(),
    }
    if torch.device(device).type == "cuda":
        description["gpu"] = torch.cuda.get_device_name(device)
        description["cuda"] = torch.version.cuda
    description.update({name: _version(name) for name in _PACKAGES})
    return description


def _processor():
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(name):
    try:
        module = import_module(name)
    except ImportError:
        return "not installed"
    return str(getattr(module, "__version__", "installed"))
