"""A picture with samples of each class of a dataset."""

import logging

import numpy as np
from detectron2.structures import BoxMode

from ..data.class_split import ROLES
from ..data.images import ImageReader
from .figure import arrange_panels, save_png
from .overlays import annotated_mask, class_color, crop_around, overlay
from .prediction_sheet import spread

logger = logging.getLogger(__name__)

_PANEL_SIDE = 160
_MARGIN = 0.25


def write_class_samples(path, records, class_split, reader=None, per_class=6, max_classes=60):
    """Write a PNG with a row of samples for each class: box, and mask where there is one.

    Args:
        path (str): file to write; its folder is created.
        records (list[dict]): images in Detectron2's dataset format.
        class_split (ClassSplit): gives names and colors.
        reader (ImageReader): reads images as RGB; None for one without options.
        per_class (int): samples of each class, spread over its instances.
        max_classes (int): more classes are left out, those with the fewest instances first.

    Returns:
        bool: False if there was nothing to draw, and nothing was written.
    """
    instances = {}
    for record in records:
        for annotation in record["annotations"]:
            if not annotation.get("iscrowd", 0):
                instances.setdefault(annotation["category_id"], []).append((record, annotation))
    classes = sorted(instances, key=lambda c: len(instances[c]), reverse=True)
    if len(classes) > max_classes:
        logger.info(
            f"{path} shows the {max_classes} classes with most instances, of {len(classes)}"
        )
    reader = reader or ImageReader("RGB")
    rows, titles = [], []
    for c in sorted(classes[:max_classes]):
        color = class_color(c, class_split)
        panels = [_draw(reader, *sample, color) for sample in spread(instances[c], per_class)]
        panels = [panel for panel in panels if panel is not None]
        if panels:
            rows.append(panels)
            titles.append(f"{class_split.class_names[c]}\n({class_split.role(c)})")
    if not rows:
        return False
    shown = [role for role in ROLES if class_split.with_role(role)]
    figure = arrange_panels(rows, row_titles=titles, roles=shown, row_inches=1.4)
    save_png(figure, path)
    return True


def _draw(reader, record, annotation, color):
    """(S, S, 3) uint8 RGB crop around an instance, or None if it cannot be drawn."""
    try:
        image = reader(record["file_name"])
        box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        mask = annotated_mask(annotation, image.shape[:2])
        (crop, mask), offset = crop_around([image, mask], np.array(box), _MARGIN)
        boxes = (np.array(box) - np.tile(offset, 2))[None]
        return overlay(crop, [color], boxes, masks=[mask], min_side=_PANEL_SIDE)
    except Exception as error:  # a picture is not worth a run; Detectron2 asserts on tiny boxes
        what = f"annotation {annotation.get('id')!r} of {record['file_name']}"
        logger.warning(f"No sample of {what}: {error or type(error).__name__}")
        return None
