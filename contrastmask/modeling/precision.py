"""Numerical precision under automatic mixed precision."""

import torch


def full_precision(tensor):
    """
    Context in which operations on the tensor's device are not cast to a lower precision.

    Args:
        tensor (Tensor): any tensor on the device in question.

    Returns:
        context manager; inside, the caller still converts its inputs with ``.float()``.
    """
    return torch.autocast(device_type=tensor.device.type, enabled=False)
