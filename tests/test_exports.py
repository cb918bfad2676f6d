"""Files as labeling tools write them, which were refused once: trained on, and evaluated with."""

import copy
import json
import shutil

import cv2
import numpy as np
import pytest
import small_model

import train_net
from contrastmask import Predictor
from contrastmask.predictor import to_rgb

_TRAINING = [
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "SEED", "5", "TEST.REPORT", "False"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2"),
]


def flat_segmentations(content):
    for x in polygons(content):
        (x["segmentation"],) = x["segmentation"]


def image_ids_as_text(content):
    for x in content["annotations"]:
        x["image_id"] = str(x["image_id"])


def root_category(content):
    name = content["categories"][0]["name"]
    content["categories"].insert(0, {"id": 0, "name": name, "supercategory": "none"})
    for x in content["categories"][1:]:
        x["supercategory"] = name


def backslashes(content):
    for x in content["images"]:
        x["file_name"] = f"C:\\Users\\me\\{x['file_name']}"


def no_sizes(content):
    for x in content["images"]:
        del x["height"], x["width"]


def same_annotation_ids(content):
    for x in content["annotations"]:
        x["id"] = 0


def polygons(content):
    return [x for x in content["annotations"] if "segmentation" in x]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder with images, and a file whose masks are polygons: diamonds in their boxes."""
    folder = tmp_path_factory.mktemp("exports")
    small_model.write_odd_data(folder, num_images=3)
    content = json.loads((folder / "annotations" / "train.json").read_text())
    for x in polygons(content):
        left, top, width, height = x["bbox"]
        middle_x, middle_y = left + width / 2, top + height / 2
        corners = [left, middle_y, middle_x, top, left + width, middle_y, middle_x, top + height]
        x["segmentation"] = [corners]
    assert len(polygons(content)) >= 2
    return folder, content


@pytest.mark.parametrize(
    "change",
    [
        flat_segmentations,
        image_ids_as_text,
        root_category,
        backslashes,
        no_sizes,
        same_annotation_ids,
    ],
)
def test_trains_and_evaluates(data, tmp_path, change):
    folder, content = data
    content = copy.deepcopy(content)
    change(content)
    (tmp_path / "annotations").mkdir()
    shutil.copytree(folder / "train", tmp_path / "train")
    (tmp_path / "annotations" / "train.json").write_text(json.dumps(content))
    opts = small_model.options(tmp_path, f"export_{change.__name__}")
    output = ["OUTPUT_DIR", str(tmp_path / "out")]
    config = ["--config-file", small_model.CONFIG_FILE]
    assert train_net.start([*config, *opts, *_TRAINING, *output]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"box", "mask"} <= set(results)
    assert (tmp_path / "out" / "model_final.pth").exists()


def test_deep_and_large_images(data, tmp_path):
    """INPUT.GRAY_RANGE and INPUT.MAX_IMAGE_PIXELS hold in training, evaluation and prediction."""
    folder, content = data
    shutil.copytree(folder / "train", tmp_path / "train")
    shutil.copytree(folder / "annotations", tmp_path / "annotations")
    for path in (tmp_path / "train").iterdir():
        gray = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2GRAY)
        cv2.imwrite(str(path), gray.astype(np.uint16) * 16)
    opts = small_model.options(tmp_path, "deep") + ["OUTPUT_DIR", str(tmp_path / "out")]
    config = ["--config-file", small_model.CONFIG_FILE]
    assert train_net.start([*config, *opts, *_TRAINING]) == 1
    keys = ["INPUT.GRAY_RANGE", "[0, 4080]"]
    small = ["INPUT.MAX_IMAGE_PIXELS", "1000"]
    assert train_net.start([*config, *opts, *_TRAINING, *keys, *small]) == 1
    assert train_net.start([*config, *opts, *_TRAINING, *keys]) == 0
    weights = str(tmp_path / "out" / "model_final.pth")
    path = str(tmp_path / "train" / "0.png")
    predictor = Predictor(weights, device="cpu")  # the checkpoint brings the keys along
    expected = cv2.imread(path, cv2.IMREAD_UNCHANGED) // 16
    assert np.array_equal(to_rgb(path, predictor.read_image)[..., 0], expected)
    predictor = Predictor(weights, device="cpu", opts=small)
    with pytest.raises(ValueError, match="Raise INPUT.MAX_IMAGE_PIXELS"):
        predictor(path)
