"""AP of groups of classes from the precision array of one COCO evaluation pass."""

import numpy as np

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Indices into the axes of IoU thresholds (0.5:0.95:0.05) and of ranges of area.
_IOU_INDICES = {"AP50": 0, "AP75": 5}
_AREA_INDICES = {"APs": 1, "APm": 2, "APl": 3}


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
