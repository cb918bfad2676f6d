"""Files in LVIS format: many classes, no "iscrowd", no "file_name", federated annotations."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from contrastmask import add_contrastmask_config
from contrastmask.data import (
    ContrastMaskDatasetMapper,
    class_split_from_config,
    read_annotations,
    register_coco_format,
    resolve_class_split,
)
from contrastmask.data import (
    test_records as records_of_model,
)
from contrastmask.data.inspection import inspect_annotation_file
from contrastmask.evaluation import ContrastMaskEvaluator

NUM_CLASSES = 1203
SIDE = 40
SQUARE = [[5.0, 5.0, 25.0, 5.0, 25.0, 25.0, 5.0, 25.0]]


@pytest.fixture
def files(tmp_path):
    """Annotation file, and folder with the folder train2017."""
    (tmp_path / "train2017").mkdir()
    images, annotations = [], []
    for image_id in (1, 2, 3):
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "train2017" / f"{image_id:012}.jpg")
        url = f"http://images.cocodataset.org/train2017/{image_id:012}.jpg"
        images.append({"id": image_id, "coco_url": url, "height": SIDE, "width": SIDE})
        images[-1].update(neg_category_ids=[image_id + 10], not_exhaustive_category_ids=[])
        for category_id in (image_id, NUM_CLASSES):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [5.0, 5.0, 20.0, 20.0],
                    "area": 400.0,
                    "segmentation": SQUARE,
                }
            )
    categories = [
        {"id": i, "name": f"class_{i}", "frequency": "rcf"[i % 3]}
        for i in range(1, NUM_CLASSES + 1)
    ]
    path = tmp_path / "lvis.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return str(path), str(tmp_path)


@pytest.fixture
def name():
    name = "lvis_like"
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def make_cfg(name, base):
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATASETS.BASE_CLASSES = base
    return cfg


def register_as_detectron2(name, json_file, image_root):
    """Like Detectron2's own LVIS datasets: 0-based ids, no "iscrowd", no map of category ids."""

    def load():
        loaded = read_annotations(json_file, image_root).records
        for record in loaded:
            record["not_exhaustive_category_ids"] = record["neg_category_ids"] = []
            for annotation in record["annotations"]:
                del annotation["iscrowd"], annotation["id"]
        return loaded

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="lvis",
        thing_classes=[f"class_{i}" for i in range(1, NUM_CLASSES + 1)],
    )


def perfect_detections(record):
    annotations = record["annotations"]
    instances = Instances((SIDE, SIDE))
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in annotations]
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.pred_classes = torch.tensor([x["category_id"] for x in annotations])
    instances.scores = torch.ones(len(annotations))
    masks = np.zeros((len(annotations), SIDE, SIDE), bool)
    masks[:, 5:25, 5:25] = True
    instances.pred_masks = torch.from_numpy(masks)
    return {"instances": instances}


def test_loading(files):
    json_file, image_root = files
    records = read_annotations(json_file, image_root).records
    assert records[1]["file_name"].endswith("train2017/000000000002.jpg")
    assert [x["category_id"] for x in records[1]["annotations"]] == [1, NUM_CLASSES - 1]
    assert not inspect_annotation_file(json_file, image_root).report.errors


@pytest.mark.parametrize("loader", ["ours", "Detectron2's"])
def test_mapping_and_evaluation(files, name, loader, caplog):
    register = register_coco_format if loader == "ours" else register_as_detectron2
    register(name, *files)
    cfg = make_cfg(name, base=["class_1", "class_1203"])
    records = DatasetCatalog.get(name)
    mapped = [ContrastMaskDatasetMapper(cfg, is_train=True)(record) for record in records]
    has_mask = [x["instances"].gt_has_mask.tolist() for x in mapped]
    assert has_mask == [[True, True], [False, True], [False, True]]

    split = class_split_from_config(cfg)
    assert len(split.novel) == NUM_CLASSES - 2
    with caplog.at_level(logging.WARNING):
        evaluator = ContrastMaskEvaluator(name, split, distributed=False)
    assert "federated" in caplog.text
    evaluator.reset()
    evaluator.process(records, [perfect_detections(record) for record in records])
    results = evaluator.evaluate()
    for group in ("", "-base", "-novel"):
        assert results[f"bbox{group}"]["AP"] == pytest.approx(100)
        assert results[f"segm{group}"]["AP"] == pytest.approx(100)


def test_classes_that_only_the_dataset_has(files, name):
    """A model of three classes, two of them in the file."""
    register_coco_format(name, *files)
    cfg = make_cfg(name, base=["class_3"])
    cfg.DATASETS.CLASS_NAMES = ["class_3", "zebra", "class_1"]
    split = class_split_from_config(cfg)
    evaluator = ContrastMaskEvaluator(name, split, distributed=False)
    found = [perfect_detections(x) for x in records_of_model(cfg, name)]
    assert [x["instances"].pred_classes.tolist() for x in found] == [[2], [], [0]]
    evaluator.process(DatasetCatalog.get(name), found)
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP-class_1"] == results["segm"]["AP-class_3"] == pytest.approx(100)
    assert np.isnan(results["bbox"]["AP-zebra"])
    with pytest.raises(ValueError, match="lvis_like.*none of the model's classes"):
        ContrastMaskEvaluator(name, resolve_class_split(["zebra"], ["zebra"]), distributed=False)
