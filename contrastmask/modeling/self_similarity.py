"""
Enhancement of RoI features by self-similarity (Sec. 3.3): each pixel becomes an average of all
pixels of its RoI, weighted by the softmax of their cosine similarities.

Fused attention (``F.scaled_dot_product_attention``) would compute the same. It cannot use that
queries and keys are the same, nor that only the resized result is wanted, which together save
almost half of the multiplications.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .cam import resize_map
from .layers import full_precision, is_traced

# Elements of the similarity matrices that are computed at once: 16 MB in float32, or 6 RoIs of
# 28 x 28.
_MAX_ELEMENTS = 2**22
# Elements of the similarity matrices that are kept for the backward pass: 133 MB, or 54 RoIs of
# 28 x 28, and 80 MB for what belongs to them. Others are computed again.
_MAX_KEPT_ELEMENTS = 2**25


def enhance_by_self_similarity(features: torch.Tensor, size: int | None = None) -> torch.Tensor:
    """
    Replace each pixel's feature by the average of all features of its RoI, weighted by the softmax
    of their cosine similarities (no temperature, no residual; Sec. 3.3 and authors' code), and
    resize the result. Similarities are computed for a few RoIs at a time. The backward pass needs
    them: up to a bound they are kept, those of further RoIs are computed again.

    Args:
        features (Tensor): (R, C, H, W).
        size (int): side of the result, in cells; None to keep the resolution.

    Returns:
        Tensor: (R, C, size, size) float32, or float64 for float64 features. It equals
        ``resize_map(enhance_by_self_similarity(features), size)``.
    """
    with full_precision(features):
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        elements = features.shape[2:].numel() ** 2  # of one RoI
        rois_at_once = max(_MAX_ELEMENTS // elements, 1)
        chunks = [features] if is_traced() else features.split(rois_at_once)
        num_kept = len(chunks)
        if torch.is_grad_enabled() and features.requires_grad:
            num_kept = _MAX_KEPT_ELEMENTS // (elements * rois_at_once)
        enhanced = [_enhance(x, size) for x in chunks[:num_kept]]
        enhanced += [
            checkpoint(_enhance, x, size, use_reentrant=False, preserve_rng_state=False)
            for x in chunks[num_kept:]
        ]
        return enhanced[0] if len(enhanced) == 1 else torch.cat(enhanced)


def _enhance(features, size):
    channels, height, width = features.shape[1:]
    values = features.flatten(2)
    normalized = F.normalize(values, dim=1)
    if is_traced():
        weights = torch.bmm(normalized.transpose(1, 2), normalized)
    else:
        weights = _Gram.apply(normalized)
    weights = weights.softmax(dim=2)  # R, HW, HW
    if size is not None and size < min(height, width):
        # Averages of features, resized, are averages with resized weights: a smaller product.
        weights = weights.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        weights = resize_map(weights, size).permute(0, 2, 3, 1).flatten(1, 2)
        height, width = size, size
    enhanced = torch.bmm(values, weights.transpose(1, 2))
    enhanced = enhanced.view(-1, channels, height, width)
    return enhanced if size is None else resize_map(enhanced, size)


class _Gram(torch.autograd.Function):
    """X'X for each X (C, P) of a batch: one product in the backward pass instead of two."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.bmm(x.transpose(1, 2), x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.bmm(x, grad + grad.transpose(1, 2))
