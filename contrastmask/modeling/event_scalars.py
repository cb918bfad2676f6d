"""Numbers for the event storage, with one device-to-host transfer for all of a training step."""

import torch
from detectron2.utils.events import get_event_storage


def put_scalars(scalars):
    """
    Args:
        scalars (dict[str, Tensor or float]): 0-dim tensors of one device, or Python numbers.
    """
    storage = get_event_storage()
    tensors = {name: x for name, x in scalars.items() if isinstance(x, torch.Tensor)}
    if tensors:
        values = torch.stack([x.detach().float() for x in tensors.values()]).tolist()
        scalars = {**scalars, **dict(zip(tensors, values))}
    for name, value in scalars.items():
        storage.put_scalar(name, value)
