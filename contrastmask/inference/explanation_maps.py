"""Looking at the enhanced features, which the model itself does not return."""

import contextlib

import torch

__all__ = ["adding_enhanced_maps", "principal_maps"]


@contextlib.contextmanager
def adding_enhanced_maps(model):
    """While this is open, detections of the model also have `enhanced_maps` (N, h, h).

    It is the first principal component of the enhanced features over the positions of each RoI,
    with the sign that agrees with the CAM. Without masks or a contrastive head nothing is added.

    Args:
        model (GeneralizedRCNN): with :class:`ContrastMaskROIHeads`.
    """
    if not model.roi_heads.mask_on:
        yield
        return
    collected = []

    def collect(module, inputs):
        enhanced = inputs[2]
        if enhanced is not None:
            collected.append(principal_maps(enhanced))

    def add(module, inputs, outputs):
        instances, _ = outputs
        numbers = [len(x) for x in instances]
        if collected:
            maps = torch.cat(collected)
            maps = maps * _agreement(maps, torch.cat([x.pred_cams for x in instances]))
            for x, m in zip(instances, maps.split(numbers)):
                x.enhanced_maps = m
        collected.clear()

    handles = [
        model.roi_heads.mask_head.register_forward_pre_hook(collect),
        model.roi_heads.register_forward_hook(add),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def principal_maps(features):
    """
    Args:
        features (Tensor): (R, C, H, W).

    Returns:
        Tensor: (R, H, W) float32, projection of each position's feature, relative to the mean of
        its RoI, on the direction in which the features of the RoI vary most. The sign is arbitrary.
    """
    x = features.float().flatten(2).transpose(1, 2)  # R, HW, C
    x = x - x.mean(dim=1, keepdim=True)
    _, directions = torch.linalg.eigh(x.transpose(1, 2) @ x)  # by ascending variance
    return (x @ directions[:, :, -1:])[..., 0].reshape(len(features), *features.shape[2:])


def _agreement(maps, cams):
    """(R, 1, 1) of 1 or -1: the sign that makes a map agree with its CAM."""
    cams = torch.nn.functional.interpolate(
        cams[:, None].float(), size=maps.shape[1:], mode="bilinear", align_corners=False
    )[:, 0]
    cams = cams - cams.mean(dim=(1, 2), keepdim=True)
    products = (maps * cams).sum(dim=(1, 2), keepdim=True)
    return torch.where(products < 0, -1.0, 1.0)
