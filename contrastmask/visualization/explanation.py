"""What the mask of each detection is made of: CAM and enhanced features beside the mask."""

import numpy as np

from .figure import arrange_panels
from .overlays import class_color, crop_around, draw_heat_maps, overlay

_MARGIN = 0.15
_PANEL_SIDE = 320


def draw_explanation(image, instances, class_split):
    """A row for each detection: the image in its box, CAM, enhanced features, and mask.

    Args:
        image (ndarray): (H, W, 3), uint8, RGB.
        instances (Instances): at least one detection with `pred_boxes`, `scores`, `pred_classes`,
            `pred_masks` (N, H, W) bool, `pred_cams` (N, h, h), and perhaps `enhanced_maps`
            (N, h, h); on the CPU.
        class_split (ClassSplit): decides the colors.

    Returns:
        matplotlib.figure.Figure:
    """
    maps = {"CAM": "pred_cams"}
    if instances.has("enhanced_maps"):
        maps["enhanced features"] = "enhanced_maps"
    rows, titles = [], []
    for i in range(len(instances)):
        one = instances[i : i + 1]
        box = one.pred_boxes.tensor[0].numpy()
        class_id = int(one.pred_classes[0])
        color = class_color(class_id, class_split)
        mask = one.pred_masks[0].numpy().astype(np.uint8)
        heats = [draw_heat_maps(image, one.pred_boxes, one.get(name)) for name in maps.values()]
        (crop, mask, *heats), offset = crop_around([image, mask, *heats], box, _MARGIN)
        boxes = (box - np.tile(offset, 2))[None]
        drawn = [(crop, ()), *((heat, ()) for heat in heats), (crop, [mask])]
        rows.append(
            [overlay(x, [color], boxes, masks=masks, min_side=_PANEL_SIDE) for x, masks in drawn]
        )
        role = next((r for r in ("base", "novel") if class_id in getattr(class_split, r)), "unused")
        titles.append(f"{class_split.class_names[class_id]} ({role})\n{float(one.scores[0]):.0%}")
    return arrange_panels(
        rows,
        column_titles=["image", *maps, "mask"],
        row_titles=titles,
        roles=("base", "novel"),
        row_inches=2.2,
    )
