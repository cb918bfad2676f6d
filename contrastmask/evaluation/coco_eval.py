"""COCO evaluation of detections with the fastest library that is installed, behind one function."""

import contextlib
import importlib
import io

import numpy as np

# Both offer classes COCO and COCOeval with the same interface and the same numbers.
_MODULES = {
    "hotcoco": ("hotcoco", "hotcoco"),
    "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval"),
}
BACKENDS = ("auto", *_MODULES)
# What a detection needs for each type of IoU. A box must be absent when masks are compared, else
# its area, and not that of the mask, would decide whether a detection is small, medium or large.
_DETECTION_FIELDS = {
    "bbox": ("image_id", "category_id", "score", "bbox"),
    "segm": ("image_id", "category_id", "score", "segmentation"),
}
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Indices into the axes of IoU thresholds (0.5:0.95:0.05) and of ranges of area.
_IOU_INDICES = {"AP50": 0, "AP75": 5}
_AREA_INDICES = {"APs": 1, "APm": 2, "APl": 3}


def coco_precision(
    ground_truth,
    detections,
    iou_type,
    *,
    category_ids,
    image_ids=None,
    max_dets=100,
    backend="auto",
):
    """Run one pass of COCO evaluation and return its precision array.

    Args:
        ground_truth (dict): COCO dataset with "images", "annotations" and "categories". Each
            annotation needs "iscrowd", "area", "bbox" and, for "segm", "segmentation". The ids of
            images are all numbers or all strings.
        detections (list[dict]): at least one, in COCO's result format: "image_id", "category_id",
            "score", and "bbox" (XYWH, pixels) or "segmentation" (compressed RLE). Not changed.
        iou_type (str): "bbox" or "segm".
        category_ids (list[int]): dataset ids of the K categories to evaluate; gives the order of K.
        image_ids (list[int] or None): images to evaluate; None for all of the ground truth.
        max_dets (int): detections counted per image and category, best scores first.
        backend (str): "hotcoco", "pycocotools", or "auto" (hotcoco if it can be imported).

    Returns:
        ndarray: float64, (T, R, K, A): precision in 0..1 at 10 IoU thresholds (0.5:0.95:0.05), 101
        recalls, K categories, 4 ranges of area (all, small, medium, large). -1 where the category
        has no ground truth in that range.

    Raises:
        ValueError: unknown `backend` or `iou_type`, or no detections.
        ImportError: the library asked for by name is not installed.
    """
    if iou_type not in _DETECTION_FIELDS:
        raise ValueError(f"iou_type must be one of {sorted(_DETECTION_FIELDS)}, got '{iou_type}'.")
    if len(detections) == 0:
        raise ValueError("COCO evaluation needs at least one detection.")
    coco_module, coco_eval_module = _MODULES[resolve_backend(backend)]
    coco_class = importlib.import_module(coco_module).COCO
    coco_eval_class = importlib.import_module(coco_eval_module).COCOeval

    fields = _DETECTION_FIELDS[iou_type]
    # hotcoco takes integers only. The order of images decides between equal scores, so it stays.
    number_of = {x: n for n, x in enumerate(sorted(x["id"] for x in ground_truth["images"]), 1)}
    with contextlib.redirect_stdout(io.StringIO()):  # both libraries print their progress
        coco_gt = coco_class()
        # The libraries write to the annotations they are given, hence the copies.
        coco_gt.dataset = {
            "info": {},
            "images": [{**x, "id": number_of[x["id"]]} for x in ground_truth["images"]],
            "annotations": _numbered(ground_truth["annotations"], number_of),
            "categories": ground_truth["categories"],
        }
        coco_gt.createIndex()
        needed = ({k: x[k] for k in fields} for x in detections)
        coco_dt = coco_gt.loadRes(_numbered(needed, number_of))

        coco_eval = coco_eval_class(coco_gt, coco_dt, iou_type)
        coco_eval.params.maxDets = [max_dets]
        coco_eval.params.catIds = sorted(category_ids)
        if image_ids is not None:
            coco_eval.params.imgIds = [number_of[x] for x in image_ids]
        coco_eval.evaluate()
        coco_eval.accumulate()

    precision = np.asarray(coco_eval.eval["precision"])[..., -1]
    return precision[:, :, np.argsort(np.argsort(category_ids))]


def _numbered(entries, number_of):
    """Copies of annotations or detections with the numbers of their images."""
    return [{**x, "image_id": number_of[x["image_id"]]} for x in entries]


def group_metrics(precision, class_ids):
    """Average precision over some of the classes.

    COCO's AP is the mean over all entries of the precision array that are not -1, so AP of a group
    is the mean over the group's slice: the same number as a pass of COCO evaluation whose `catIds`
    are the group's.

    Args:
        precision (ndarray or None): (T, R, K, A) from :func:`coco_precision`. None: no detections.
        class_ids (sequence[int]): indices into K.

    Returns:
        dict[str, float]: AP, AP50, AP75, APs, APm, APl in percent; NaN where no class of the group
        has ground truth, or where `precision` is None.
    """
    if precision is None:
        return {metric: float("nan") for metric in METRICS}
    group = precision[:, :, sorted(class_ids)]
    return {
        metric: _mean_precision(
            group[_IOU_INDICES.get(metric, slice(None)), ..., _AREA_INDICES.get(metric, 0)]
        )
        for metric in METRICS
    }


def harmonic_mean(a, b):
    """Harmonic mean of two values >= 0; 0 if both are 0, NaN if either is NaN."""
    return 0.0 if a + b == 0 else 2 * a * b / (a + b)


def _mean_precision(precision):
    valid = precision[precision > -1]
    return float(np.mean(valid) * 100) if valid.size else float("nan")


def resolve_backend(backend):
    """Return the name of the library that `backend` stands for.

    Args:
        backend (str): one of `BACKENDS`.

    Returns:
        str: "hotcoco" or "pycocotools".

    Raises:
        ValueError: `backend` is not one of `BACKENDS`.
        ImportError: the library asked for by name is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"TEST.COCO_EVAL_BACKEND must be one of {BACKENDS}, got '{backend}'.")
    if backend == "auto":
        return "hotcoco" if _can_import("hotcoco") else "pycocotools"
    if not _can_import(backend):
        raise ImportError(
            f"TEST.COCO_EVAL_BACKEND is '{backend}', but '{backend}' cannot be imported. Run 'pip "
            f"install {backend}', or set the key to 'auto'."
        )
    return backend


def _can_import(name):
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
