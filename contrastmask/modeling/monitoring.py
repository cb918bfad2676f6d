"""What a training step leaves in Detectron2's event storage: numbers, and images (VIS_PERIOD)."""

import torch
from detectron2.utils.events import get_event_storage

from .cam import resize_map
from .pixel_sets import KeySets

_COLORS = {  # RGB of each key set
    "easy_positive": (0.1, 0.7, 0.1),
    "hard_positive": (0.7, 1.0, 0.2),
    "easy_negative": (0.1, 0.2, 0.8),
    "hard_negative": (1.0, 0.3, 0.2),
}


def put_scalars(scalars: dict[str, torch.Tensor | float]) -> None:
    """
    Store numbers, with one device-to-host transfer for all of them.

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


def put_training_images(
    *,
    cam: torch.Tensor,
    sampled: KeySets | None,
    mask_logits: torch.Tensor | None,
    max_rois: int = 8,
) -> None:
    """
    Store rows of RoIs as images: normalized CAMs, sampled keys, predicted mask probabilities.

    Args:
        cam (Tensor): (R, 1, h, w), CAMs normalized to 0..1.
        sampled (KeySets): four bool tensors (R, H, W); None if the loss is off.
        mask_logits (Tensor): (M, 1, H', W'), of the RoIs that supervise masks; None if there are
            none.
        max_rois (int): RoIs a row.
    """
    storage = get_event_storage()
    storage.put_image("contrastmask/cam", _row(cam[:max_rois].expand(-1, 3, -1, -1)))
    if sampled is not None:
        pixels = sampled.easy_positive[:max_rois, None]
        canvas = torch.zeros_like(pixels, dtype=torch.float32).repeat(1, 3, 1, 1)
        for name, pixels in sampled._asdict().items():
            color = torch.tensor(_COLORS[name], device=cam.device)[None, :, None, None]
            canvas = torch.where(pixels[:max_rois, None], color, canvas)
        storage.put_image("contrastmask/sampled_keys", _row(canvas))
    if mask_logits is not None:
        masks = mask_logits.detach()[:max_rois].float().sigmoid().expand(-1, 3, -1, -1)
        storage.put_image("contrastmask/predicted_masks", _row(masks))


def _row(tiles, side=112):
    """Tiles (N, 3, H, W) side by side, as one (3, side, N * side) image on the CPU."""
    tiles = resize_map(tiles.detach().float(), side).clamp(0, 1)
    return torch.cat(list(tiles), dim=2).cpu()
