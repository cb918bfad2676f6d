"""Part: COCO evaluation with each library."""

import numpy as np

from ..evaluation.coco_eval import BACKENDS, coco_precision, group_metrics, resolve_backend
from .made_up_coco import make_dataset, make_detections
from .timing import compare

_REFERENCE = "pycocotools"


def run(settings):
    """
    One measurement, of 5,000 images with 100 detections each. AP of base and of novel classes come
    from the same pass: the first quarter of the classes is base.

    Args:
        settings (Settings):

    Returns:
        list[dict]: one row for each library and type of IoU, and for both types together;
        "difference" is the largest of any AP, in percent, and of any entry of the precision array.
    """
    num_images, per_image = (10, 10) if settings.quick else (settings.images or 5000, 100)
    dataset = make_dataset(num_images)
    detections = make_detections(dataset, per_image)
    category_ids = [x["id"] for x in dataset["categories"]]
    precisions = {}

    def evaluate(backend, iou_type):
        def call():
            precisions[backend, iou_type] = coco_precision(
                dataset, detections, iou_type, category_ids=category_ids, backend=backend
            )

        return call

    backends = [x for x in BACKENDS if x != "auto" and _is_installed(x)]
    functions = {(b, t): evaluate(b, t) for b in backends for t in ("bbox", "segm")}
    timings = compare(functions, settings.repeats or 1, "cpu", warmup=0)

    groups = {
        "": range(len(category_ids)),
        "base ": range(len(category_ids) // 4),
        "novel ": range(len(category_ids) // 4, len(category_ids)),
    }
    rows = []
    for (backend, iou_type), timing in timings.items():
        metrics = [
            {f"{group}{k}": v for group, ids in groups.items()
             for k, v in group_metrics(precisions[b, iou_type], ids).items()}
            for b in (backend, _REFERENCE)
        ]  # fmt: skip
        rows.append(
            {
                "library": backend,
                "IoU": iou_type,
                "s": timing.median,
                "speed ratio": timings[_REFERENCE, iou_type].median / timing.median,
                **{k: metrics[0][k] for k in ("AP", "base AP", "novel AP")},
                "AP difference": max(abs(metrics[0][k] - metrics[1][k]) for k in metrics[0]),
                "precision difference": float(
                    np.abs(precisions[backend, iou_type] - precisions[_REFERENCE, iou_type]).max()
                ),
            }
        )
    for backend in backends:
        seconds, reference = (
            sum(timings[x, t].median for t in ("bbox", "segm")) for x in (backend, _REFERENCE)
        )
        rows.append(
            {"library": backend, "IoU": "both", "s": seconds, "speed ratio": reference / seconds}
        )
    return rows


def _is_installed(backend):
    try:
        resolve_backend(backend)
    except ImportError:
        return False
    return True
