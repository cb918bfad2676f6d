import base64
import io
import json
import math
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import synthetic_coco

from contrastmask.data import ClassSplit
from contrastmask.data.images import ImageReader
from contrastmask.evaluation import ContrastMaskEvaluator
from contrastmask.evaluation import report as report_module
from contrastmask.evaluation.report import (
    _draw_pair,
    _precision_recall_chart,
    _training_chart,
    best_median_worst,
    write_report,
)
from contrastmask.predictor import BoxMask

SPLIT = synthetic_coco.SPLIT


def evaluate_and_report(folder, detections, dataset, split=SPLIT, gt_box_masks=True, **kwargs):
    """
    Evaluate and write a report. With `gt_box_masks` the mask predicted for a ground-truth box is
    that of a detection, or of nothing.
    """
    inputs = synthetic_coco.register(dataset, "report", folder)
    outputs = synthetic_coco.to_outputs(detections, dataset)
    if gt_box_masks:
        for image, x, output in zip(dataset["images"], inputs, outputs):
            x["annotations"], x["file_name"] = [], image["file_name"]
            found = [d for d in detections if d["image_id"] == image["id"]]
            for truth, predicted in zip(found, found[1:]):
                class_id = synthetic_coco.CATEGORY_IDS.index(truth["category_id"])
                left, top, width, height = truth["bbox"]
                box = [left, top, left + width, top + height]
                x["annotations"].append({**truth, "category_id": class_id, "bbox": box})
                mask = BoxMask(predicted["segmentation"], 0.6)
                output.setdefault("gt_box_masks", []).append(mask)
            output.setdefault("gt_box_masks", [])
    evaluator = ContrastMaskEvaluator("report", split, distributed=False, **kwargs)
    evaluator.process(inputs, outputs)
    results = evaluator.evaluate()
    write_report(
        str(folder / "out" / "report.html"),
        dataset_name="made <up> & odd",
        results=results,
        data=evaluator.evaluation_data(),
        class_split=split,
        metrics_file=str(folder / "metrics.json"),
    )
    return results, (folder / "out" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    dataset = synthetic_coco.make_dataset(num_images=15)
    for image in dataset["images"]:
        image["file_name"] = str(folder / f"{image['id']}.jpg")
        gray = np.full((image["height"], image["width"], 3), 128, np.uint8)
        cv2.imwrite(image["file_name"], gray)
    return dataset


@pytest.fixture(scope="module")
def report(tmp_path_factory, dataset):
    """Results and the page that shows them."""
    folder = tmp_path_factory.mktemp("report")
    lines = [{"iteration": i, "total_loss": 3 - i / 50, "loss_mask": 1.0} for i in (19, 39, 59)]
    lines[1]["segm-novel/AP"], lines[2]["segm-novel/AP"] = 10.0, 20.0
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"iteration": 79, "total_l'
    (folder / "metrics.json").write_text(text)
    detections = synthetic_coco.make_detections(dataset)
    return evaluate_and_report(folder, detections, dataset, eval_filled_boxes=True)


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attrs = dict(attrs)
        self.links += [attrs[k] for k in ("src", "href", "srcset") if attrs.get(k)]


def test_page_needs_nothing_else(report):
    _, page = report
    reader = _Reader()
    reader.feed(page)
    assert "script" not in reader.tags and page.count("data:image/svg+xml") == 2
    assert all(link.startswith("data:") for link in reader.links)
    assert not re.search(r"https?://|@import", page)
    assert "made &lt;up&gt; &amp; odd" in page and "<up>" not in page


def test_numbers_are_those_of_the_evaluation(report):
    results, page = report
    rows = re.findall(r'<tr class="(base|novel|all)"><th scope="row">\w+</th>(.*?)</tr>', page)
    cells = [[group, *re.findall(r"<td>(.*?)</td>", row)] for group, row in rows]
    aps = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    expected = []
    for task in ("bbox", "segm", "gt-box-mask", "segm-filled-box"):
        for group, key in (("base", f"{task}-base"), ("novel", f"{task}-novel"), ("all", task)):
            metrics = ("IoU", "CAM_AUC") if task == "gt-box-mask" else aps
            numbers = [results[key][m] for m in metrics]
            expected.append([group, *map(shown, numbers)])
    assert cells == expected
    assert f"mask AP: {results['segm-harmonic']['AP']:.2f}" in page


def shown(number):
    return "–" if math.isnan(number) else f"{number:.2f}"


def test_classes(report):
    """Base classes first, each group by falling IoU."""
    results, page = report
    rows = re.findall(r'<tr class="(\w+) class"><th scope="row">(\w+)</th>(.*?)</tr>', page)
    assert sorted(name for _, name, _ in rows) == sorted(SPLIT.class_names)
    for role, name, row in rows:
        assert role == SPLIT.role(SPLIT.class_names.index(name))
        ap, mask_ap = (results[task][f"AP-{name}"] for task in ("bbox", "segm"))
        iou = results["gt-box-mask"][f"IoU-{name}"]
        assert re.findall(r"<td>(.*?)</td>", row)[:4] == [role, *map(shown, (ap, mask_ap, iou))]
        assert ("<meter" in row) == (not math.isnan(iou))
    order = [
        ("base", "novel", "unused").index(role) * 1000
        - np.nan_to_num(results["gt-box-mask"][f"IoU-{name}"], nan=-1)
        for role, name, _ in rows
    ]
    assert order == sorted(order) and len({role for role, _, _ in rows}) == 3


def test_gallery(report):
    results, page = report
    assert "Masks of novel classes" in page
    assert re.findall(r"<h3>(\w+)</h3>", page) == ["Best", "Median", "Worst"]
    ious = [
        [float(x) for x in re.findall(r"mask IoU ([\d.]+)", part)]
        for part in page.split("<h3>")[1:]
    ]
    assert all(len(x) == len(ious[0]) for x in ious) and len(ious[0]) > 0
    flat = [x for part in ious for x in part]
    assert flat == sorted(flat, reverse=True)
    assert page.count("data:image/jpeg") == 2 * len(flat)
    names = set(re.findall(r"<figcaption>(\w+):", page))
    assert names and names <= {SPLIT.class_names[i] for i in SPLIT.novel}


def test_without_detections_or_masks(tmp_path, dataset):
    _, page = evaluate_and_report(tmp_path, [], dataset)
    assert "There are no detections" in page and "no training log" in page
    detections = synthetic_coco.make_detections(dataset)
    options = {"tasks": ("bbox",), "gt_box_masks": False}
    _, page = evaluate_and_report(tmp_path, detections, dataset, **options)
    assert "Boxes" in page and "Mask" not in page and "mask AP" not in page


def test_gallery_of_base_classes_if_there_are_no_novel_ones(tmp_path, dataset):
    split = ClassSplit(SPLIT.class_names, base=tuple(range(8)), novel=())
    detections = synthetic_coco.make_detections(dataset)
    _, page = evaluate_and_report(tmp_path, detections, dataset, split)
    assert "Masks of base classes" in page and "<figcaption>ant" in page


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 17, 18, 40])
def test_no_mask_twice(number):
    masks = [{"iou": (7 * i % number) / 100} for i in range(number)]
    kinds = best_median_worst(masks, 6)
    shown = [x["iou"] for chosen in kinds.values() for x in chosen]
    assert shown == sorted(shown, reverse=True) and len(set(shown)) == len(shown)
    assert len(shown) == (number if number < 3 else 3 * min(6, number // 3))
    if shown:
        assert shown[0] == max(x["iou"] for x in masks) and shown[-1] == 0


def test_locale_without_utf8(tmp_path, dataset, monkeypatch):
    def open_ascii(file, mode="r", buffering=-1, encoding=None, *args, **kwargs):
        encoding = None if "b" in mode else encoding or "ascii"
        return io.open(file, mode, buffering, encoding, *args, **kwargs)

    monkeypatch.setattr("builtins.open", open_ascii)
    _, page = evaluate_and_report(tmp_path, [], dataset)
    assert "<td>–</td>" in page


def test_precision_is_a_mean_over_the_classes_with_objects(monkeypatch):
    """At the first and the sixth threshold, for objects of all sizes."""
    monkeypatch.setattr(report_module, "_chart_uri", lambda figure: figure)
    precision = np.full((10, 101, 8, 4), 0.99)
    for index, values in ((0, [0.8, 0.1, 0, 0.3, -1, 0.5, 0.4, -1]), (5, [0.2] * 7 + [-1])):
        precision[index, :, :, 0] = values
    figure = _precision_recall_chart({"segm": precision}, SPLIT)
    found = {x.get_label(): set(np.round(x.get_ydata(), 6)) for x in figure.axes[0].lines}
    assert found == {
        "base, IoU 0.50": {0.4},
        "novel, IoU 0.50": {0.2},
        "all, IoU 0.50": {0.35},
        "base, IoU 0.75": {0.2},
        "novel, IoU 0.75": {0.2},
        "all, IoU 0.75": {0.2},
    }


def test_boxes_are_drawn_where_they_are_in_the_crop(tmp_path, monkeypatch):
    image = np.zeros((60, 90, 3), np.uint8)
    image[30:50, 40:80] = 255
    cv2.imwrite(str(tmp_path / "a.png"), image)
    drawn = []

    def overlay(crop, colors, boxes, masks, **kwargs):
        drawn.append((crop, boxes[0].astype(int), masks[0]))
        return crop

    monkeypatch.setattr(report_module, "overlay", overlay)
    truth, predicted = (np.zeros((60, 90), np.uint8, order="F") for _ in range(2))
    truth[30:50, 40:80], predicted[30:50, 40:60] = 1, 1
    pair = {"truth": mask_util.encode(truth), "predicted": mask_util.encode(predicted)}
    x = {**pair, "file_name": str(tmp_path / "a.png"), "category_id": 1, "iou": 0.5}
    _draw_pair({**x, "bbox": [40, 30, 80, 50]}, SPLIT, ImageReader("RGB"))
    for crop, (x0, y0, x1, y1), _ in drawn:
        assert crop.shape[:2] != image.shape[:2] and (x1 - x0, y1 - y0) == (40, 20)
        assert (crop[y0:y1, x0:x1] == 255).all() and crop.astype(bool).sum() == 3 * 800
    assert [int(mask.sum()) for *_, mask in drawn] == [800, 400]
    assert (drawn[0][2] == drawn[0][0][..., 0].astype(bool)).all()


def test_metrics_without_losses():
    assert _training_chart([]) is None
    assert _training_chart([{"iteration": 5, "lr": 0.1, "total_loss": float("nan")}]) is None


def test_curve_of_validation_losses():
    lines = [{"iteration": i, "total_loss": 3.0 - i / 9, "val/loss_mask": 1.0} for i in (4, 9)]
    lines[1]["val/total_loss"] = 2.5
    prefix, content = _training_chart(lines).split(",", 1)
    assert prefix == "data:image/svg+xml;base64"
    labels = re.findall(r"<!-- (\S*loss\S*) -->", base64.b64decode(content).decode())
    assert labels == ["losses", "total_loss", "val/total_loss"]
