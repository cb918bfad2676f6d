"""Settings from data: each rule against numbers computed here, and configs that load and train."""

import json
import re
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import build_model

from contrastmask import get_config
from contrastmask.config_writing import write_config
from contrastmask.data.shapes import ShapesParams, write_shapes
from contrastmask.engine import Trainer, load_config
from contrastmask.planning import Choice, Device, TrainingData, plan

ROOT = Path(__file__).parents[1]
CPU, GPU = Device("cpu", 0.0, 2), Device("cuda", 24.0, 12)


def make_data(images, boxes, image_of_box=None, num_masks=0, num_rles=0):
    if image_of_box is None:
        image_of_box = np.arange(len(boxes)) % len(images)
    classes = (("cat",), ("dog",)) if num_masks else ((), ("cat", "dog"))
    images, boxes = np.array(images, dtype=float), np.array(boxes, dtype=float)
    return TrainingData(images, boxes, np.array(image_of_box), num_masks, num_rles, *classes)


def values(data, device=CPU, given=()):
    choices = plan(data, device, given).choices
    assert len({x.key for x in choices}) == len(choices)
    return {x.key: x.value for x in choices}


@pytest.mark.parametrize(
    "size, side, short",
    [
        ((200, 300), 100, 192),  # 96 / 100 of 200
        ((200, 200), 20, 256),  # 1.25 of 200, rounded to 16
        ((400, 800), 40, 192),  # 384 / 2
        ((400, 400), 380, 192),  # no smaller
    ],
)
def test_image_size_on_a_cpu(size, side, short):
    found = values(make_data([size] * 8, [(side, side)] * 16))
    assert found["INPUT.MIN_SIZE_TEST"] == short
    low, high = found["INPUT.MIN_SIZE_TRAIN"]
    assert low < short < high and found["INPUT.MAX_SIZE_TRAIN"] <= 384
    assert found["INPUT.MAX_SIZE_TEST"] == found["INPUT.MAX_SIZE_TRAIN"] >= short


def test_objects_are_measured_in_their_own_images():
    data = make_data([(100, 150)] * 2 + [(400, 300)] * 6, [(50, 50)] * 8, [0, 1] * 4)
    assert values(data)["INPUT.MIN_SIZE_TEST"] == 192  # 96 / 50 of 100


def test_image_size_on_a_gpu():
    found = values(make_data([(480, 640)] * 8, [(50, 72)] * 16), GPU)
    assert found["INPUT.MIN_SIZE_TEST"] == 768  # 96 / 60 of 480
    found = values(make_data([(4000, 6000)] * 8, [(72, 50)] * 16), GPU)
    assert found["INPUT.MAX_SIZE_TEST"] == 1333


def test_anchors_cover_the_objects_as_they_are_scaled():
    rng = np.random.default_rng(1)
    images = [(200, 260), (600, 150), (400, 520)] * 20
    boxes = rng.uniform(30, 150, (240, 2))
    found = values(make_data(images, boxes))
    short, longest = found["INPUT.MIN_SIZE_TEST"], found["INPUT.MAX_SIZE_TEST"]
    sides = sorted(
        (w * h) ** 0.5 * min(short / min(images[i % 60]), longest / max(images[i % 60]))
        for i, (w, h) in enumerate(boxes)
    )
    anchors = [x[0] for x in found["MODEL.ANCHOR_GENERATOR.SIZES"]]
    assert abs(anchors[0] - sides[12]) < 1 and len(anchors) == 5
    assert all(a >= 2 * stride for a, stride in zip(anchors, (4, 8, 16, 32, 64)))
    ratio = (sides[227] / sides[12]) ** 0.25
    assert abs(anchors[1] - max(sides[12] * ratio, 16)) < 2
    assert "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS" not in found


def test_long_objects_get_long_anchors():
    boxes = [(20, 100)] * 3 + [(50, 50)] * 17
    key = "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"
    assert values(make_data([(200, 200)] * 5, boxes))[key] == [[0.25, 0.5, 1.0, 2.0, 4.0]]
    a_tenth = [(20, 100)] * 2 + [(50, 50)] * 18
    assert key not in values(make_data([(200, 200)] * 5, a_tenth))


def test_numbers_follow_the_objects_of_an_image():
    few = values(make_data([(200, 200)] * 20, [(50, 50)] * 20))
    many = values(make_data([(200, 200)] * 20, [(10, 10)] * 20 * 70))
    rois, proposals = "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.RPN.POST_NMS_TOPK_TEST"
    assert (few[rois], many[rois]) == (32, 128)
    assert (few[proposals], many[proposals]) == (50, 280)
    key = "TEST.DETECTIONS_PER_IMAGE"
    assert (few[key], many[key]) == (100, 150)


@pytest.mark.parametrize("num_images, iterations", [(20, 600), (800, 1200), (9000, 2000)])
def test_length_on_a_cpu(num_images, iterations):
    data = make_data([(200, 200)] * num_images, [(50, 50)] * num_images)
    assert values(data)["SOLVER.MAX_ITER"] == iterations


def test_schedule_on_a_gpu():
    data = make_data([(480, 640)] * 9000, [(60, 60)] * 9000)
    found = values(data, GPU)
    assert found["SOLVER.IMS_PER_BATCH"] == 6  # 24 GiB
    assert found["SOLVER.BASE_LR"] == pytest.approx(0.02 * 6 / 16)
    assert found["SOLVER.MAX_ITER"] == 12 * 9000 // 6
    assert found["SOLVER.STEPS"] == [12000, 16500]
    found = values(data, Device("cuda:1", 80.0, 4))
    assert found["SOLVER.IMS_PER_BATCH"] == 16 and found["DATALOADER.NUM_WORKERS"] == 3
    few = values(make_data([(480, 640)] * 3, [(60, 60)] * 3), GPU)
    assert few["SOLVER.IMS_PER_BATCH"] == 3 and few["SOLVER.MAX_ITER"] == 100


def test_supervision():
    images, boxes = [(200, 200)] * 5, [(50, 50)] * 10
    boxes_only = values(make_data(images, boxes))
    assert boxes_only["MODEL.MASK_ON"] is False
    assert not any("MASK_HEAD" in x for x in boxes_only)
    partly = values(make_data(images, boxes, num_masks=4, num_rles=1))
    assert partly["INPUT.MASK_FORMAT"] == "bitmask" and "MODEL.MASK_ON" not in partly
    assert partly["MODEL.ROI_MASK_HEAD.SELF_TRAINING.LOSS_WEIGHT"] == 1
    assert partly["MODEL.ROI_MASK_HEAD.COLOR_CRF.AT_TEST"] is True
    fully = values(make_data(images, boxes, num_masks=10))
    assert "INPUT.MASK_FORMAT" not in fully
    assert fully["MODEL.ROI_MASK_HEAD.COLOR_CRF.AT_TEST"] is True
    assert not any("BOX_SUPERVISION" in x or "SELF_TRAINING" in x for x in fully)


@pytest.mark.parametrize("num_iterations, decay", [(7, 0.9), (750, 0.98), (2000, 0.9925)])
def test_teacher_of_a_longer_training_is_slower(num_iterations, decay):
    data = make_data([(200, 200)] * 5, [(50, 50)] * 10, num_masks=4)
    found = values(data, given=[Choice("SOLVER.MAX_ITER", num_iterations, "Mine.")])
    assert found["MODEL.ROI_MASK_HEAD.SELF_TRAINING.DECAY"] == pytest.approx(decay)


def test_what_somebody_chose_replaces_the_plan():
    data = make_data([(200, 200)] * 5, [(50, 50)] * 5)
    found = values(data, given=[Choice("SOLVER.MAX_ITER", 7, "Mine.")])
    assert found["SOLVER.MAX_ITER"] == 7


def test_device_that_is_not_there():
    assert Device.find("cpu").is_cpu
    for name in ("cuda:77", "toaster"):
        with pytest.raises(ValueError, match=f"device '{name}'"):
            Device.find(name)


@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("num_masks", [0, 5, 10])
def test_written_config_says_why_and_builds(device, num_masks, tmp_path):
    settings = plan(
        make_data([(200, 300)] * 5, [(50, 50)] * 10, None, num_masks, num_masks), device
    )
    # YAML takes the second as the end of a line, and refuses the third.
    odd = Choice(
        "OUTPUT_DIR", "out: é # x", "Not one line:\nbut \x85 several \x07 é. " + "long " * 40
    )
    settings.choices.append(odd)
    path = tmp_path / "deep" / "own.yaml"
    write_config(str(path), settings, ["Header."])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Header." and all(len(x) <= 100 for x in lines)
    leaves = 0
    for before, line in zip(lines, lines[1:]):
        if re.match(r" *\w+: .", line):
            leaves += 1
            assert before.lstrip().startswith("# ") and len(before) > 6, line
    assert leaves == len(settings.choices) + 1  # and _BASE_
    cfg = get_config(str(path), ["MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.DEVICE", "meta"])
    for choice in settings.choices:
        value = cfg
        for part in choice.key.split("."):
            value = value[part]
        if choice.key != "MODEL.DEVICE":
            assert (list(value) if isinstance(value, tuple) else value) == choice.value
    cfg.DATASETS.BASE_CLASSES = ["shapes_base"] if num_masks else ["auto"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 14
    cfg.DATASETS.TRAIN = ("shapes_train",)
    if num_masks:  # else the classes would be looked up in data that need not be there
        with torch.device("meta"):
            build_model(cfg)


def test_base_is_named_relatively_among_the_configs():
    from contrastmask.config_writing import _base_path

    settings = plan(make_data([(200, 300)], [(50, 50)]), GPU)
    assert _base_path(str(ROOT / "configs" / "x.yaml"), settings.base) == settings.base
    assert _base_path(str(ROOT / "configs/own/x.yaml"), settings.base) == f"../{settings.base}"
    assert Path(_base_path(str(ROOT / "x.yaml"), settings.base)).is_absolute()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(str(folder), ShapesParams(12, 4, 96, 1))
    return folder


def test_trains_end_to_end(shapes, tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "tools" / "inspect_dataset.py"))["main"]
    main.__globals__["write_class_samples"] = lambda *args: False
    path = tmp_path / "own.yaml"
    args = ["--json", str(shapes / "annotations/train.json"), "--images", str(shapes / "train")]
    args += ["--device", "cpu", "--write-config", str(path), "SOLVER.MAX_ITER", "2"]
    assert main(args) == 0
    parts = [json.loads((tmp_path / f"own_{x}.json").read_text()) for x in ("train", "val")]
    whole = json.loads((shapes / "annotations/train.json").read_text())
    assert sum(len(x["images"]) for x in parts) == len(whole["images"])
    used = [{x["category_id"] for x in part["annotations"]} for part in parts]
    images_of = {}
    for x in whole["annotations"]:
        images_of.setdefault(x["category_id"], set()).add(x["image_id"])
    assert used[0] == set(images_of)
    assert len(used[1]) >= 0.7 * sum(len(x) > 1 for x in images_of.values())
    assert yaml.safe_load(path.read_text())["SOLVER"]["MAX_ITER"] == 2
    assert "Given on the command line." in path.read_text()
    fast = ["MODEL.WEIGHTS", "", "OUTPUT_DIR", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", "0"]
    cfg = load_config(str(path), [*fast, "SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()"])
    trainer = Trainer(cfg)
    trainer.train()
    losses = {k: v[0] for k, v in trainer.storage.latest().items() if k.startswith("loss_")}
    assert {"loss_mask", "loss_cls", "loss_rpn_loc"} <= set(losses)
    assert all(np.isfinite(x) for x in losses.values())
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_objects_of_other_than_base_classes_have_no_mask(shapes):
    from contrastmask.data.inspection import inspect_annotation_file

    json_file = shapes / "annotations/train_full.json"
    inspection = inspect_annotation_file(str(json_file), str(shapes / "train"))
    content = json.loads(json_file.read_text())
    ids = {x["name"]: x["id"] for x in content["categories"]}
    data = TrainingData.from_inspection(inspection, ["ring", "gear"])
    of_base = [x["category_id"] in (ids["ring"], ids["gear"]) for x in content["annotations"]]
    assert 0 < data.num_masks == sum(of_base) < len(of_base)
    assert data.masked_classes == ("ring", "gear") or data.masked_classes == ("gear", "ring")
    assert data.num_box_only == len(of_base) - sum(of_base)
    everything = TrainingData.from_inspection(inspection)
    assert everything.num_box_only == 0 and everything.num_images == len(content["images"])
    image = cv2.imread(inspection.records[0]["file_name"])
    assert everything.image_sizes[0].tolist() == list(image.shape[:2])
    assert everything.box_sizes.tolist() == [x["bbox"][2:] for x in content["annotations"]]
    places = [x["id"] for x in content["images"]]
    found = [places.index(x["image_id"]) for x in content["annotations"]]
    assert everything.image_of_box.tolist() == found
