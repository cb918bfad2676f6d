"""A sheet of images with ground truth, predicted masks, and class activation maps (CAMs)."""

import copy
import numpy as np
import os
import torch
import torch.nn.functional as F
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import inference_context
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, BoxMode
from detectron2.utils.file_io import PathManager
from detectron2.utils.visualizer import GenericMask, Visualizer
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch

BASE_COLOR = (0.10, 0.45, 1.00)
NOVEL_COLOR = (1.00, 0.50, 0.05)
UNUSED_COLOR = (0.60, 0.60, 0.60)
_COLUMNS = ("ground truth", "predictions", "CAMs of the predictions")
# Smaller images are enlarged to this many pixels before anything is drawn, so that text fits.
_MIN_SIDE = 480
_ROW_INCHES = 3.0
_DPI = 120
_CAM_OPACITY = 0.65


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

    preferred = [i for i, record in enumerate(records) if shows_both(record)]
    others = [i for i in range(len(records)) if i not in set(preferred)]
    chosen = _spread(preferred, num_images)
    chosen += _spread(others, num_images - len(chosen))
    return [records[i] for i in sorted(chosen)]


@torch.no_grad()
def predict(cfg, model, record):
    """Detections on one image of a dataset, as in evaluation.

    Args:
        cfg (CfgNode): for the test transforms.
        model (nn.Module): detector; its training mode is restored.
        record (dict): one image in Detectron2's dataset format.

    Returns:
        Instances: on the CPU, in pixels of the image file.
    """
    model_input = DatasetMapper(cfg, is_train=False)(copy.deepcopy(record))
    with inference_context(model):
        return model([model_input])[0]["instances"].to("cpu")


def draw_ground_truth(image, record, class_split):
    """Draw the annotations of an image: boxes, labels, and masks of the instances that have one.

    Args:
        image (ndarray): (H, W, 3), uint8, RGB.
        record (dict): the image in Detectron2's dataset format.
        class_split (ClassSplit): decides the colours.

    Returns:
        ndarray: (H', W', 3), uint8, RGB; enlarged if the image is small.
    """
    annotations = [x for x in record["annotations"] if not x.get("iscrowd", 0)]
    classes = [x["category_id"] for x in annotations]
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in annotations]
    return _overlay(
        image,
        class_split,
        classes,
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        masks=[_annotated_mask(x, image.shape[:2]) for x in annotations],
        labels=[class_split.class_names[c] for c in classes],
    )


def draw_detections(image, instances, class_split):
    """Draw detections: boxes, class and score, and masks if there are any.

    Args:
        image (ndarray): (H, W, 3), uint8, RGB.
        instances (Instances): `pred_boxes`, `scores`, `pred_classes`, perhaps `pred_masks`
            (N, H, W) bool; on the CPU.
        class_split (ClassSplit): decides the colours.

    Returns:
        ndarray: (H', W', 3), uint8, RGB; enlarged if the image is small.
    """
    classes = instances.pred_classes.tolist()
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else []
    return _overlay(
        image,
        class_split,
        classes,
        boxes=instances.pred_boxes.tensor.numpy(),
        masks=masks,
        labels=[
            f"{class_split.class_names[c]} {score:.0%}"
            for c, score in zip(classes, instances.scores.tolist())
        ],
    )


def draw_cams(image, instances):
    """Blend the CAMs of detections, each scaled to 0..1 and put into its box, with the image.

    Where boxes overlap, the larger value shows. A constant CAM shows as 0.

    Args:
        image (ndarray): (H, W, 3), uint8, RGB.
        instances (Instances): `pred_boxes` and `pred_cams` (N, h, h); on the CPU.

    Returns:
        ndarray: (H, W, 3), uint8, RGB.
    """
    if len(instances) == 0:
        return image
    boxes = instances.pred_boxes
    size = image.shape[:2]
    cams = instances.pred_cams.float()
    lowest = cams.amin(dim=(1, 2), keepdim=True)
    extent = cams.amax(dim=(1, 2), keepdim=True) - lowest
    cams = (cams - lowest) / extent.clamp(min=torch.finfo(cams.dtype).tiny)

    inside = _inside(boxes, size)
    # One more cell on each side, so that values do not fade at the border of the box. A negative
    # threshold keeps the values, as 0..255.
    side = cams.shape[-1]
    cams = F.pad(cams[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    pasted = paste_masks_in_image(cams, _grow(boxes, (side + 2) / side), size, threshold=-1)
    heat = (pasted * inside).amax(dim=0).numpy()
    inside = inside.any(dim=0).numpy()
    colors = colormaps["turbo"](heat)[..., :3] * 255
    opacity = _CAM_OPACITY * inside[..., None]
    return np.rint(image * (1 - opacity) + colors * opacity).astype(np.uint8)


def write_sheet(path, records, detections, class_split, score_threshold=0.5):
    """Write a PNG with one row per image: ground truth, detections, CAMs.

    Args:
        path (str): file to write; its folder is created.
        records (list[dict]): N >= 1 images in Detectron2's dataset format.
        detections (list[Instances]): N, on the CPU. The column of CAMs is left out if they have
            no `pred_cams`.
        class_split (ClassSplit): decides the colours.
        score_threshold (float): detections below are not drawn.
    """
    detections = [x[x.scores >= score_threshold] for x in detections]
    columns = _COLUMNS if detections[0].has("pred_cams") else _COLUMNS[:-1]
    rows = []
    for record, instances in zip(records, detections):
        image = read_image(record["file_name"], format="RGB")
        panels = [
            draw_ground_truth(image, record, class_split),
            draw_detections(image, instances, class_split),
        ]
        if instances.has("pred_cams"):
            panels.append(draw_cams(image, instances))
        rows.append(panels)
    figure = _arrange(rows, columns, score_threshold)
    if os.path.dirname(path):
        PathManager.mkdirs(os.path.dirname(path))
    with PathManager.open(path, "wb") as f:
        figure.savefig(f, format="png")


def _spread(items, number):
    """At most `number` of the items, at even distances."""
    if number <= 0 or not items:
        return []
    indices = np.linspace(0, len(items) - 1, num=min(number, len(items)))
    return [items[i] for i in np.rint(indices).astype(int)]


def _annotated_mask(annotation, size):
    """(H, W) uint8 mask of an annotation, empty if it has none."""
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        return np.zeros(size, dtype=np.uint8)
    return GenericMask(segmentation, *size).mask


def _inside(boxes, size):
    """(N, H, W) bool: pixels whose centre is in the box."""
    x0, y0, x1, y1 = boxes.tensor[:, :, None].unbind(dim=1)
    y, x = (torch.arange(n) + 0.5 for n in size)
    return ((y0 <= y) & (y < y1))[:, :, None] & ((x0 <= x) & (x < x1))[:, None]


def _grow(boxes, factor):
    """Boxes with the same centres and `factor` times the sides."""
    centers = boxes.get_centers().repeat(1, 2)
    return Boxes(centers + (boxes.tensor - centers) * factor)


def _overlay(image, class_split, classes, boxes, labels, masks):
    scale = max(1.0, _MIN_SIDE / max(image.shape[:2]))
    visualizer = Visualizer(image, scale=scale)
    colors = [_color(c, class_split) for c in classes]
    # Not through overlay_instances, which fills the holes of masks. Large masks first.
    for i in sorted(range(len(masks)), key=lambda i: masks[i].sum(), reverse=True):
        visualizer.draw_binary_mask(masks[i], color=colors[i], area_threshold=0)
    visualizer.overlay_instances(boxes=boxes, labels=labels, assigned_colors=colors)
    return visualizer.get_output().get_image()


def _color(class_id, class_split):
    if class_id in class_split.base:
        return BASE_COLOR
    return NOVEL_COLOR if class_id in class_split.novel else UNUSED_COLOR


def _arrange(rows, columns, score_threshold):
    aspect = max(panel.shape[1] / panel.shape[0] for panels in rows for panel in panels)
    size = (_ROW_INCHES * aspect * len(columns), _ROW_INCHES * len(rows) + 0.6)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes_of_row, panels in zip(axes, rows):
        for ax, panel in zip(axes_of_row, panels):
            ax.imshow(panel)
            ax.set_axis_off()
    for ax, title in zip(axes[0], columns):
        ax.set_title(title)
    figure.legend(
        handles=[
            Patch(color=BASE_COLOR, label="base class"),
            Patch(color=NOVEL_COLOR, label="novel class"),
        ],
        title=f"detections with score >= {score_threshold:g}",
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    return figure
