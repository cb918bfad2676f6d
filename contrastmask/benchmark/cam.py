"""Part: class activation maps for growing numbers of classes."""

import torch

from ..modeling.cam import class_activation_map, min_max_normalize, resize_map
from .made_up_rois import make_features
from .memory import peak_memory
from .timing import compare


def run(settings):
    """
    In training, CAMs of 256 positive RoIs, forward and backward; at test time, of 100 final
    detections out of 1,000 proposals.

    Args:
        settings (Settings):

    Returns:
        list[dict]: rows; ratios are relative to the first number of classes.
    """
    num_train, num_proposals, num_detections = (4, 8, 2) if settings.quick else (256, 1000, 100)
    class_map = make_features(num_proposals, settings.channels, 7, settings.device)
    rows = []
    for stage in ("training", "inference"):
        functions = {}
        for num_classes in settings.classes:
            weight = torch.nn.Linear(settings.channels, num_classes + 1, device=settings.device)
            weight = weight.weight
            if stage == "training":
                functions[num_classes] = _training(settings, class_map[:num_train], weight)
            else:
                functions[num_classes] = _inference(settings, class_map, weight, num_detections)
        timings = compare(functions, settings.num_repeats(50), settings.device, warmup=3)
        peaks = {k: peak_memory(function, settings.device) for k, function in functions.items()}
        first = settings.classes[0]
        for num_classes, timing in timings.items():
            rows.append(
                {
                    "stage": stage,
                    "classes": num_classes,
                    **timing.columns(),
                    "ratio": timing.median / timings[first].median,
                    "peak MB": peaks[num_classes] / 1e6,
                    "peak ratio": peaks[num_classes] / peaks[first],
                }
            )
    return rows


def _training(settings, class_map, weight):
    class_map = class_map.clone().requires_grad_()
    classes = torch.randint(len(weight) - 1, (len(class_map),), device=settings.device)

    def call():
        cam = resize_map(class_activation_map(class_map, weight[classes]), settings.side // 2)
        normalized = min_max_normalize(cam)
        min_max_normalize(resize_map(cam.detach(), settings.side))
        normalized.sum().backward()

    return call


def _inference(settings, class_map, weight, num_detections):
    kept = torch.randperm(len(class_map))[:num_detections].to(settings.device)
    classes = torch.randint(len(weight) - 1, (num_detections,), device=settings.device)

    @torch.no_grad()
    def call():
        cam = class_activation_map(class_map[kept], weight[classes])
        return min_max_normalize(resize_map(cam, settings.side // 2))

    return call
