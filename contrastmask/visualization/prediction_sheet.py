"""A sheet of images with ground truth, predicted masks, and class activation maps (CAMs)."""

import numpy as np

from ..data.images import ImageReader
from .figure import arrange_panels, save_png
from .overlays import draw_cams, draw_detections, draw_ground_truth

_COLUMNS = ("ground truth", "predictions", "CAMs of the predictions")


def select_records(records, class_split, num_images):
    """Choose images spread evenly over a dataset, preferring those with base and novel objects.

    Args:
        records (list[dict]): a dataset in Detectron2's format.
        class_split (ClassSplit): the dataset's.
        num_images (int): at most this many.

    Returns:
        list[dict]: records in the order of the dataset.
    """

    def shows_both(record):
        classes = {x["category_id"] for x in record["annotations"]}
        return bool(classes & set(class_split.base)) and bool(classes & set(class_split.novel))

    is_preferred = [shows_both(record) for record in records]
    preferred = [i for i, flag in enumerate(is_preferred) if flag]
    others = [i for i, flag in enumerate(is_preferred) if not flag]
    chosen = spread(preferred, num_images)
    chosen += spread(others, num_images - len(chosen))
    return [records[i] for i in sorted(chosen)]


def spread(items, number):
    """At most `number` of the items, at even distances."""
    if number <= 0 or not items:
        return []
    indices = np.linspace(0, len(items) - 1, num=min(number, len(items)))
    return [items[i] for i in np.rint(indices).astype(int)]


def write_sheet(path, records, detections, class_split, score_threshold=0.5, reader=None):
    """Write a PNG with one row per image: ground truth, detections, CAMs.

    Args:
        path (str): file to write; its folder is created.
        records (list[dict]): N >= 1 images in Detectron2's dataset format.
        detections (list[Instances]): N, on the CPU. The column of CAMs is left out if they have
            no `pred_cams`.
        class_split (ClassSplit): decides the colors.
        score_threshold (float): detections below are not drawn.
        reader (ImageReader): reads images as RGB; None for one without options.
    """
    detections = [x[x.scores >= score_threshold] for x in detections]
    columns = _COLUMNS if detections[0].has("pred_cams") else _COLUMNS[:-1]
    rows, reader = [], reader or ImageReader("RGB")
    for record, instances in zip(records, detections):
        image = reader(record["file_name"])
        panels = [
            draw_ground_truth(image, record, class_split),
            draw_detections(image, instances, class_split),
        ]
        if instances.has("pred_cams"):
            panels.append(draw_cams(image, instances))
        rows.append(panels)
    figure = arrange_panels(
        rows,
        column_titles=columns,
        legend_title=f"detections with score >= {score_threshold:g}",
        roles=("base", "novel"),
    )
    save_png(figure, path)
