import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import cv2
import made_up_coco
import numpy as np
import pytest

from contrastmask.data import ClassSplit
from contrastmask.evaluation import ContrastMaskEvaluator
from contrastmask.evaluation.report import write_report
from contrastmask.evaluation.report.charts import class_ap_chart, training_chart
from contrastmask.evaluation.report.gallery import MaskPair, best_median_worst, match_masks

BASE, NOVEL = made_up_coco.SPLIT.base, made_up_coco.SPLIT.novel
SPLIT = ClassSplit(tuple(made_up_coco.CLASS_NAMES), BASE, NOVEL)


def evaluate_and_report(folder, detections, dataset, split=SPLIT, **kwargs):
    inputs = made_up_coco.register(dataset, "report", folder)
    evaluator = ContrastMaskEvaluator("report", split, distributed=False, **kwargs)
    evaluator.reset()
    evaluator.process(inputs, made_up_coco.to_outputs(detections, dataset))
    results = evaluator.evaluate()
    write_report(
        str(folder / "out" / "report.html"),
        dataset_name="made <up> & odd",
        results=results,
        data=evaluator.evaluation_data(),
        class_split=split,
        image_root=str(folder),
        metrics_file=str(folder / "metrics.json"),
    )
    return results, (folder / "out" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    dataset = made_up_coco.make_dataset(num_images=15)
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
    detections = made_up_coco.make_detections(dataset)
    return evaluate_and_report(folder, detections, dataset, eval_filled_boxes=True)


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attrs = dict(attrs)
        self.links += [attrs[k] for k in ("src", "href", "xlink:href", "srcset") if attrs.get(k)]
        self.ids += [attrs["id"]] if "id" in attrs else []


def test_page_needs_nothing_else(report):
    _, page = report
    reader = _Reader()
    reader.feed(page)
    assert "script" not in reader.tags and reader.tags.count("svg") == 3
    assert all(link.startswith(("data:", "#")) for link in reader.links)
    assert set(re.findall(r"https?://[\w./]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in page
    assert len(reader.ids) == len(set(reader.ids)) > 10
    used = set(re.findall(r"url\(#([^)]+)\)", page)) | {x[1:] for x in reader.links if x[0] == "#"}
    assert used <= set(reader.ids)
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.S):
        ElementTree.fromstring(svg)
    assert "made &lt;up&gt; &amp; odd" in page and "<up>" not in page


def test_numbers_are_those_of_the_evaluation(report):
    results, page = report
    rows = re.findall(r'<tr class="(\w+)"><th scope="row">\w+</th>(.*?)</tr>', page)
    cells = [[group, *re.findall(r"<td>(.*?)</td>", row)] for group, row in rows]
    expected = []
    for task in ("bbox", "segm", "segm-filled-box"):
        for group, key in (("base", f"{task}-base"), ("novel", f"{task}-novel"), ("all", task)):
            numbers = [results[key][m] for m in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
            expected.append([group, *("–" if x != x else f"{x:.2f}" for x in numbers)])
    assert cells == expected
    assert f"mask AP: {results['segm-harmonic']['AP']:.2f}" in page
    for name in made_up_coco.CLASS_NAMES:
        assert name in page
    assert "gnu (not measured)" in page


def test_training_curves_and_gallery(report):
    _, page = report
    assert "total_loss" in page and "segm-novel" in page
    kinds = re.findall(r"<h3>(\w+)</h3>", page)
    assert kinds == ["Best", "Median", "Worst"]
    ious = [
        [float(x) for x in re.findall(r"mask IoU ([\d.]+)", part)]
        for part in page.split("<h3>")[1:]
    ]
    assert all(len(x) == len(ious[0]) for x in ious) and len(ious[0]) > 0
    flat = [x for part in ious for x in part]
    assert flat == sorted(flat, reverse=True)
    assert page.count("data:image/jpeg") == 2 * len(flat)
    assert not re.search(r"<figcaption>(ant|cat|eel|fox)", page)  # not novel


def test_without_detections_or_masks(tmp_path, dataset):
    _, page = evaluate_and_report(tmp_path, [], dataset)
    assert "There are no detections" in page and "no training log" in page
    detections = made_up_coco.make_detections(dataset)
    _, page = evaluate_and_report(tmp_path, detections, dataset, tasks=("bbox",))
    assert "Bars: box AP" in page and "Masks of" not in page


def test_gallery_of_base_classes_if_there_are_no_novel_ones(tmp_path, dataset):
    split = ClassSplit(SPLIT.class_names, base=tuple(range(8)), novel=())
    detections = made_up_coco.make_detections(dataset)
    _, page = evaluate_and_report(tmp_path, detections, dataset, split)
    assert "Masks of base classes" in page and "<figcaption>ant" in page


def test_matching():
    image = {1: {"height": 20, "width": 20}}

    def square(x, category_id=5, **kwargs):
        polygon = [[x, 2, x + 10, 2, x + 10, 12, x, 12]]
        common = {"image_id": 1, "category_id": category_id, "bbox": [x, 2, 10, 10]}
        return {**common, "segmentation": polygon, **kwargs}

    import pycocotools.mask as mask_util

    detections = [square(x, score=0.1) for x in (5, 2, 0)] + [square(1, 6, score=0.9)]
    for x in detections:
        x["segmentation"] = mask_util.merge(mask_util.frPyObjects(x["segmentation"], 20, 20))
    truth = [square(1), square(9, 6), square(1, iscrowd=1), square(1, 7)]
    (pair,), num_missed = match_masks(image, truth, detections, {5, 6})
    assert pair.detection is detections[1] or pair.detection is detections[2]
    assert pair.iou == pytest.approx(9 / 11) and num_missed == 1


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 17, 18, 40])
def test_no_pair_twice(number):
    pairs = [MaskPair(i, {}, {}, 1 - i / 100) for i in range(number)]
    kinds = best_median_worst(pairs, 6)
    shown = [pair.image_id for chosen in kinds.values() for pair in chosen]
    assert len(shown) == len(set(shown))
    assert len(shown) == (number if number < 3 else 3 * min(6, number // 3))
    if shown:
        assert shown[0] == 0 and shown[-1] == number - 1


def test_many_classes():
    names = tuple(f"class {i}" for i in range(1203))
    split = ClassSplit(names, tuple(range(300)), tuple(range(300, 1203)))
    svg = class_ap_chart({name: 10.0 for name in names}, split)
    assert "1203 classes" in svg and "class 7" not in svg
    ElementTree.fromstring(svg)


def test_class_names_with_dollar_signs():
    names = (r"x$\foo$", "$a_{$ x", "$5", "cat")
    split = ClassSplit(names, base=(0, 1), novel=(2, 3))
    svg = class_ap_chart(dict.fromkeys(names[1:], 10.0), split)
    texts = [x.text for x in ElementTree.fromstring(svg).iter() if x.tag.endswith("text")]
    assert set(texts) >= {r"x$\foo$ (not measured)", *names[1:]}


def test_locale_without_utf8(tmp_path, dataset, monkeypatch):
    def open_ascii(file, mode="r", buffering=-1, encoding=None, *args, **kwargs):
        encoding = None if "b" in mode else encoding or "ascii"
        return io.open(file, mode, buffering, encoding, *args, **kwargs)

    monkeypatch.setattr("builtins.open", open_ascii)
    _, page = evaluate_and_report(tmp_path, [], dataset)
    assert "<td>–</td>" in page


def test_metrics_without_losses():
    assert training_chart([]) is None
    assert training_chart([{"iteration": 5, "lr": 0.1, "total_loss": float("nan")}]) is None
