"""Part: enhancement by self-similarity against its textbook form."""

import torch
import torch.nn.functional as F

from ..modeling.cam import resize_map
from ..modeling.self_similarity import enhance_by_self_similarity
from .made_up_rois import make_features
from .memory import peak_memory
from .timing import compare, ratio


def run(settings):
    """
    Forward and backward, with the result resized for the mask head.

    Args:
        settings (Settings):

    Returns:
        list[dict]: rows; ratios and differences are relative to the materialised form.
    """
    size = settings.side // 2
    forms = {
        "materialised": lambda x: resize_map(_materialised(x), size),
        "fused attention": lambda x: resize_map(_fused_attention(x), size),
        "ours": lambda x: enhance_by_self_similarity(x, size),
    }
    rows = []
    for num in settings.roi_counts((16, 256)):
        x = make_features(num, settings.channels, settings.side, settings.device).requires_grad_()
        functions = {name: _forward_backward(form, x) for name, form in forms.items()}
        timings = compare(functions, settings.num_repeats(3), settings.device)
        peaks = {
            name: peak_memory(function, settings.device) for name, function in functions.items()
        }
        results = {name: function() for name, function in functions.items()}
        for name, timing in timings.items():
            difference = [
                (a - b).abs().max().item() for a, b in zip(results[name], results["materialised"])
            ]
            rows.append(
                {
                    "RoIs": num,
                    "form": name,
                    **timing.columns(),
                    "ratio": ratio(timing, timings["materialised"]),
                    "peak MB": peaks[name] / 1e6,
                    "peak ratio": peaks[name] / peaks["materialised"],
                    "max difference": difference[0],
                    "of gradients": difference[1],
                }
            )
    return rows


def _forward_backward(form, x):
    def call():
        x.grad = None
        enhanced = form(x)
        # Not a plain sum: its gradient with respect to the similarities would almost vanish.
        (enhanced * enhanced.detach()).sum().backward()
        return enhanced.detach(), x.grad

    return call


def _materialised(x):
    values = x.flatten(2)
    directions = F.normalize(values, dim=1)
    weights = torch.softmax(directions.transpose(1, 2) @ directions, dim=2)
    return (values @ weights.transpose(1, 2)).view_as(x)


def _fused_attention(x):
    values = x.flatten(2).transpose(1, 2)[:, None].contiguous()  # R, 1, HW, C
    directions = F.normalize(values, dim=3)
    enhanced = F.scaled_dot_product_attention(directions, directions, values, scale=1.0)
    return enhanced[:, 0].transpose(1, 2).reshape(x.shape)
