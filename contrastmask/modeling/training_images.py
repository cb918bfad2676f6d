"""Images for the event storage that show what the heads learn from (VIS_PERIOD)."""

import torch
from detectron2.utils.events import get_event_storage

from .cam import resize_map

_COLORS = {  # RGB of each key set
    "easy_positive": (0.1, 0.7, 0.1),
    "hard_positive": (0.7, 1.0, 0.2),
    "easy_negative": (0.1, 0.2, 0.8),
    "hard_negative": (1.0, 0.3, 0.2),
}


def put_training_images(*, cam, sampled, mask_logits, max_rois=8):
    """
    Store rows of RoIs as images: normalised CAMs, sampled keys, predicted mask probabilities.

    Args:
        cam (Tensor): (R, h, w), CAMs normalised to 0..1.
        sampled (KeySets): four bool tensors (R, H, W); None if the loss is off.
        mask_logits (Tensor): (M, 1, H', W'), of the RoIs that supervise masks; None if there are
            none.
        max_rois (int): RoIs a row.
    """
    storage = get_event_storage()
    storage.put_image("contrastmask/cam", _row(cam[:max_rois, None].expand(-1, 3, -1, -1)))
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
