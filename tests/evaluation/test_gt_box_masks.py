"""IoU of the masks that are predicted for ground-truth boxes."""

import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import small_model
import synthetic_coco
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from synthetic_coco import SPLIT

from contrastmask.data import ContrastMaskDatasetMapper
from contrastmask.engine import Trainer, load_config
from contrastmask.evaluation import ContrastMaskEvaluator, EvaluationModel
from contrastmask.predictor import BoxMask, Predictor

NAME = "synthetic_gt_boxes"


def rectangle(x0, y0, x1, y1, height=30, width=50):
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    rle = mask_util.encode(mask)
    return {"size": [height, width], "counts": rle["counts"].decode()}


@pytest.fixture
def evaluator(tmp_path):
    """Of a dataset with two images; its masks do not matter."""
    dataset = synthetic_coco.make_dataset(num_images=2)
    synthetic_coco.register(dataset, NAME, tmp_path)
    return ContrastMaskEvaluator(NAME, SPLIT)


def process(evaluator, image_id, shares):
    """
    Give an image with an object of each class in `shares`, whose predicted mask is that share of
    the true one, which is 10 pixels wide and 20 high.
    """
    (output,) = synthetic_coco.to_outputs(
        [], {"images": [{"id": image_id, "height": 30, "width": 50}]}
    )
    annotations = [
        {"category_id": c, "bbox": [5, 5, 15, 25], "segmentation": rectangle(5, 5, 15, 25)}
        for c in shares
    ]
    masks = [rectangle(5, 5, 15, 5 + round(20 * share)) for share in shares.values()]
    output["gt_box_masks"] = [BoxMask(mask, 0.7) for mask in masks]
    record = {"image_id": image_id, "file_name": f"{image_id}.png", "annotations": annotations}
    evaluator.process([record], [output])


def ious(results):
    return [results[f"gt-box-mask{suffix}"]["IoU"] for suffix in ("-base", "-novel", "")]


def test_groups_and_classes(evaluator):
    """Classes 0, 2 and 4 are base, 1 is novel, 5 is in neither group."""
    process(evaluator, 1, {0: 1.0, 2: 0.5, 1: 0.25, 5: 0.1})
    process(evaluator, 2, {2: 0.9, 1: 0.0})
    results = evaluator.evaluate()
    expected = [100 * np.mean(x) for x in ([1, 0.5, 0.9], [0.25, 0], [1, 0.5, 0.25, 0.1, 0.9, 0])]
    assert ious(results) == pytest.approx(expected)
    assert results["gt-box-mask"]["IoU-cat"] == pytest.approx(70)
    assert results["gt-box-mask"]["IoU-bee"] == pytest.approx(12.5)
    assert math.isnan(results["gt-box-mask"]["IoU-dog"])
    assert ious(evaluator.evaluate(img_ids=[2])) == pytest.approx([90, 0, 45])


def test_auc_of_cams(evaluator):
    """Objects are the left half of their boxes; an object that fills its box does not count."""
    (output,) = synthetic_coco.to_outputs([], {"images": [{"id": 1, "height": 30, "width": 50}]})
    truth, box = rectangle(5, 5, 15, 25), [5, 5, 25, 25]
    annotations = [{"category_id": c, "bbox": box, "segmentation": truth} for c in (0, 2, 1)]
    annotations += [{"category_id": 0, "bbox": [5, 5, 15, 25], "segmentation": truth}]
    falling = torch.tensor([[4.0, 2.0], [4.0, 2.0]])
    output["gt_box_masks"] = [BoxMask(truth, 0.7)] * 4
    output["gt_box_cams"] = torch.stack([falling, falling * 0, -falling, falling])
    evaluator.process([{"image_id": 1, "file_name": "1.png", "annotations": annotations}], [output])
    results = evaluator.evaluate()
    found = [results[f"gt-box-mask{x}"]["CAM_AUC"] for x in ("-base", "-novel", "")]
    assert found == pytest.approx([75, 0, 50])


def test_group_without_objects(evaluator):
    process(evaluator, 1, {2: 0.5})
    base, novel, all_classes = ious(evaluator.evaluate())
    assert base == all_classes == pytest.approx(50) and math.isnan(novel)


def test_other_ranks(evaluator, monkeypatch):
    process(evaluator, 1, {2: 0.5})
    here = evaluator._predictions
    evaluator.reset()
    process(evaluator, 2, {2: 0.9, 1: 0.4})
    gathered = [here, evaluator._predictions]
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda data, dst: gathered)
    assert ious(evaluator.evaluate()) == pytest.approx([70, 40, 60])


def test_only_where_they_were_predicted(evaluator):
    """As with test-time augmentation."""
    dataset = {"images": [{"id": 1, "height": 30, "width": 50}]}
    evaluator.process([{"image_id": 1}], synthetic_coco.to_outputs([], dataset))
    assert not any(key.startswith("gt-box-mask") for key in evaluator.evaluate())


def test_what_the_mapper_hands_over(tmp_path):
    from PIL import Image

    Image.new("RGB", (50, 30)).save(tmp_path / "a.png")
    polygon = [[5.0, 6, 25, 6, 25, 16, 5, 16]]
    common = {"bbox": [5, 6, 20, 10], "bbox_mode": BoxMode.XYWH_ABS}
    annotations = [
        {**common, "category_id": 3, "segmentation": polygon},
        {**common, "category_id": 1, "segmentation": polygon, "iscrowd": 1},
        {**common, "category_id": 2},
        {**common, "category_id": 4, "segmentation": [[1.0, 2, 3, 4]]},
        {**common, "category_id": 7, "segmentation": rectangle(5, 6, 20, 11)},
        {**common, "category_id": 6, "segmentation": polygon, "bbox": [50, 6, 20, 10]},
        {**common, "category_id": 5, "segmentation": polygon, "bbox": [5, 6, 0, 10]},
    ]
    record = {"file_name": str(tmp_path / "a.png"), "height": 30, "width": 50}
    options = dict(is_train=False, augmentations=[], image_format="BGR", use_instance_mask=True)
    (one, two) = ContrastMaskDatasetMapper(**options)({**record, "annotations": annotations})[
        "annotations"
    ]
    assert (one["category_id"], two["category_id"]) == (3, 7)
    assert one["bbox"] == two["bbox"] == [5, 6, 25, 16]
    assert [mask_util.area(x["segmentation"]) for x in (one, two)] == [200, 75]
    assert one["segmentation"]["size"] == two["segmentation"]["size"] == [30, 50]
    assert mask_util.toBbox(one["segmentation"]).tolist() == [5, 6, 20, 10]
    options["use_instance_mask"] = False
    x = ContrastMaskDatasetMapper(**options)({**record, "annotations": annotations})
    assert "annotations" not in x


@pytest.fixture(scope="module")
def model_and_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gt_boxes")
    small_model.write_odd_data(folder)
    opts = small_model.options(folder, "gt_boxes", "train_full")
    opts += ["OUTPUT_DIR", str(folder / "out")]
    path = small_model.write_checkpoint(folder, opts)
    return folder, opts, Predictor(path)


def test_evaluation_of_a_model(model_and_data):
    """The numbers are those of the predictor, and the image is encoded once."""
    folder, opts, predictor = model_and_data
    cfg, model = predictor.cfg, predictor.model
    load_config(small_model.CONFIG_FILE, opts)  # registers the data
    calls = []
    handle = model.backbone.register_forward_hook(lambda *args: calls.append(1))
    Trainer.test(cfg, model)
    handle.remove()
    results = json.loads((folder / "out" / "results.json").read_text())
    records = DatasetCatalog.get("gt_boxes")
    assert len(calls) == len(records) == 5

    expected = {"base": [], "novel": [], "all": []}
    for record in records:
        boxes = [
            BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS)
            for x in record["annotations"]
        ]
        classes = [x["category_id"] for x in record["annotations"]]
        masks = predictor.masks_for_boxes(record["file_name"], boxes, classes)
        for x, mask in zip(record["annotations"], masks):
            iou = mask_util.iou([mask.mask], [x["segmentation"]], [0])[0, 0]
            role = "base" if predictor.class_names[x["category_id"]] in predictor.base else "novel"
            expected[role].append(100 * iou)
            expected["all"].append(100 * iou)
    assert len(expected["base"]) != len(expected["novel"]) and min(map(len, expected.values())) > 3
    for group, values in expected.items():
        assert results["gt_box_mask"][group]["IoU"] == pytest.approx(np.mean(values), abs=1e-3)
    per_class = results["gt_box_mask"]["per_class"]
    assert set(per_class) == set(predictor.class_names) and None in per_class.values()


def test_the_model_detects_as_before(model_and_data):
    _, opts, predictor = model_and_data
    cfg = load_config(small_model.CONFIG_FILE, opts)
    x = next(iter(Trainer.build_test_loader(cfg, "gt_boxes")))
    wrapped = EvaluationModel(predictor.model)
    assert not wrapped.training
    with torch.no_grad():
        (output,), (expected,) = wrapped(x), predictor.model(x)
    assert len(output["gt_box_masks"]) == len(x[0]["annotations"]) > 0
    assert output["gt_box_cams"].shape[0] == len(x[0]["annotations"])
    for name, value in expected["instances"].get_fields().items():
        found = output["instances"].get(name)
        assert torch.equal(getattr(found, "tensor", found), getattr(value, "tensor", value)), name
    predictor.model.train()
    assert EvaluationModel(predictor.model).training
    predictor.model.eval()


def test_data_without_novel_masks(model_and_data):
    folder, opts, predictor = model_and_data
    json_file = str(folder / "annotations" / "train.json")
    opts = [*opts, "OUTPUT_DIR", str(folder / "partly"), "DATASETS.TEST", "('gt_boxes_partly',)"]
    opts += ["DATASETS.COCO_FORMAT", str([["gt_boxes_partly", json_file, str(folder / "train")]])]
    Trainer.test(load_config(small_model.CONFIG_FILE, opts), predictor.model)
    results = json.loads((folder / "partly" / "results.json").read_text())
    whole = json.loads((folder / "out" / "results.json").read_text())
    assert results["gt_box_mask"]["novel"]["IoU"] is None
    assert results["gt_box_mask"]["base"] == whole["gt_box_mask"]["base"]
