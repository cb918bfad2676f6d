import json
import logging
import runpy
from pathlib import Path

import cv2
import pytest
from detectron2.data import DatasetCatalog

from contrastmask.data.shapes import ShapesParams, write_shapes
from contrastmask.engine import load_config

ROOT = Path(__file__).parents[2]
TOOL = str(ROOT / "tools" / "inspect_dataset.py")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(str(folder), ShapesParams(5, 1, 64, 1))
    return folder


@pytest.fixture
def inspect(shapes, tmp_path, capsys, monkeypatch):
    """Function: arguments -> exit code and what is printed."""
    # The program sets this; it is back after the test.
    monkeypatch.setattr(logging.getLogger("contrastmask.data.coco_format"), "disabled", False)
    main = runpy.run_path(TOOL)["main"]

    def run(json_file=None, *args, draw=False):
        if not draw:
            main.__globals__["write_class_samples"] = lambda *args: False
        json_file = json_file or shapes / "annotations" / "train.json"
        args = ["--json", str(json_file), "--images", str(shapes / "train"), *args]
        code = main([*args, "--output", str(tmp_path / "out" / "samples.png")])
        return code, capsys.readouterr().out

    return run


def test_data_that_can_be_used(inspect, tmp_path):
    code, printed = inspect(draw=True)
    assert code == 0 and "Training can start." in printed
    (star,) = [line.split("|") for line in printed.splitlines() if line.startswith("| star")]
    assert star[2].strip() == "novel" and int(star[3]) > 0 and int(star[4]) == 0
    assert cv2.imread(str(tmp_path / "out" / "samples.png")).std() > 10


def test_roles_from_the_command_line(inspect):
    code, printed = inspect(None, "--base-classes", "ring", "gear")
    assert code == 0
    roles = {x.split("|")[1].strip(): x.split("|")[2].strip() for x in printed.splitlines()[3:18]
             if x.startswith("| ")}  # fmt: skip
    assert roles["ring"] == roles["gear"] == "base" and roles["cross"] == "novel"


@pytest.mark.parametrize(
    "base, reason",
    [("star", "No instance of a base class has a mask"), ("stra", "did you mean 'star'")],
)
def test_data_without_masks_to_learn_from(inspect, base, reason):
    code, printed = inspect(None, "--base-classes", base)
    assert code == 1
    assert reason in printed.split("Training cannot start:")[1]


def test_broken_data(inspect, shapes, tmp_path):
    content = json.loads((shapes / "annotations" / "train.json").read_text())
    content["annotations"][-1]["bbox"] = [1, 2, 3, "wide"]
    content["images"][0]["file_name"] = "none.jpg"
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(content))
    code, printed = inspect(broken)
    reasons = printed.split("Training cannot start:")[1]
    assert code == 1
    assert "missing image file" in reasons and "none.jpg" in reasons and "wide" in reasons
    code, printed = inspect(tmp_path / "none.json")
    assert code == 1 and printed.endswith("there is no such annotation file\n")


@pytest.mark.parametrize("name", ["lvis_v1_train", "coco_2017_train", "shapes_train"])
def test_file_named_like_a_dataset(inspect, shapes, tmp_path, name):
    path = tmp_path / f"{name}.json"
    path.write_text((shapes / "annotations" / "train.json").read_text())
    code, printed = inspect(path, "--base-classes", "ring")
    assert code == 0 and f"\n{path}\n| class" in printed
    code, printed = inspect(path, "--base-classes", "star")
    assert code == 1 and f"No instance of a base class has a mask in '{path}': " in printed


def test_picture_that_cannot_be_written(inspect, tmp_path):
    (tmp_path / "out").write_text("a file where a folder has to be")
    code, printed = inspect(draw=True)
    assert code == 0 and "picture with samples cannot be drawn" in printed


def test_config_file(shapes, tmp_path, capsys):
    main = runpy.run_path(TOOL)["main"]
    main.__globals__["write_class_samples"] = lambda *args: False
    files = [str(shapes / "annotations" / "train_full.json"), str(shapes / "train")]
    args = ["--config-file", str(ROOT / "configs" / "quickstart.yaml")]
    args += ["--output", str(tmp_path / "samples.png")]
    args += ["DATASETS.COCO_FORMAT", str([["inspected_full", *files]])]
    args += ["DATASETS.TRAIN", "('inspected_full',)", "DATASETS.TEST", "()"]
    assert main(args) == 0
    assert main([*args, "MODEL.ROI_HEADS.NUM_CLASSES", "3"]) == 1
    assert "Set MODEL.ROI_HEADS.NUM_CLASSES 14" in capsys.readouterr().out
    assert main([*args, "SOLVER.LR", "1"]) == 1
    assert "- config override: " in capsys.readouterr().out


def test_wrong_arguments():
    main = runpy.run_path(TOOL)["main"]
    both = ["--json", "x", "--images", "y"]
    for args in (
        [],
        both[:2],
        [*both, "--config-file", "z"],
        [*both, "--val-json", "z"],
        ["--config-file", "z", "--base-classes", "cat"],
        ["--config-file", "z", "--write-config", "a.yaml"],
        [*both, "--overwrite"],
    ):
        with pytest.raises(SystemExit):
            main(args)


def test_write_config(inspect, shapes, tmp_path):
    path = tmp_path / "settings.yaml"
    options = ["--write-config", str(path), "--device", "cpu"]
    code, printed = inspect(None, *options, "--base-classes", "ring", "gear")
    assert code == 0 and "split off for validation, seed 0" in printed
    assert f"python train_net.py --config-file {path}" in printed
    assert "python tools/predict_masks.py --weights output/settings/model_final.pth" in printed
    cfg = load_config(str(path))
    assert cfg.DATASETS.BASE_CLASSES == ["ring", "gear"]
    assert cfg.DATASETS.TEST == ("settings_val",) and len(DatasetCatalog.get("settings_val")) >= 1
    before = path.read_text()
    code, _ = inspect(None, *options)
    assert code == 1 and path.read_text() == before
    code, _ = inspect(None, *options, "--overwrite", "--base-classes", "ring")
    assert code == 0 and path.read_text() != before


def test_files_are_parsed_once(inspect, shapes, tmp_path, files_parsed):
    """Those that are written are read as well, to be sure of them."""
    train, val = (str(shapes / "annotations" / f"{x}.json") for x in ("train", "val"))
    written = [str(tmp_path / f"once_{x}.json") for x in ("train", "val")]
    assert inspect(None, "--write-config", str(tmp_path / "once.yaml"), "--device", "cpu")[0] == 0
    assert files_parsed == [train, *written]
    files_parsed.clear()
    given = ["--val-json", val, "--val-images", str(shapes / "val"), "--device", "cpu"]
    assert inspect(None, *given, "--write-config", str(tmp_path / "given_once.yaml"))[0] == 0
    assert files_parsed == [train, val]


def test_write_config_with_validation_data(inspect, shapes, tmp_path):
    path = tmp_path / "given.yaml"
    val = ["--val-json", str(shapes / "annotations/val.json"), "--val-images", str(shapes / "val")]
    code, printed = inspect(None, *val, "--write-config", str(path), "--device", "cpu")
    assert code == 0 and "split off" not in printed
    assert [x.name for x in tmp_path.glob("*.json")] == []
    assert load_config(str(path)).DATASETS.COCO_FORMAT[1][1] == val[1]


def test_write_config_for_boxes_only(inspect, shapes, tmp_path):
    content = json.loads((shapes / "annotations" / "train.json").read_text())
    for x in content["annotations"]:
        x.pop("segmentation", None)
    boxes, path = tmp_path / "boxes.json", tmp_path / "own_boxes.yaml"
    boxes.write_text(json.dumps(content))
    code, printed = inspect(boxes, "--write-config", str(path), "--device", "cpu")
    assert code == 0 and "python demo/demo.py" in printed
    assert load_config(str(path)).MODEL.MASK_ON is False


def test_write_config_for_masks_that_are_crowds(inspect, shapes, tmp_path):
    content = json.loads((shapes / "annotations" / "train.json").read_text())
    for x in content["annotations"]:
        x["iscrowd"] = int("segmentation" in x)
    crowds, path = tmp_path / "crowds.json", tmp_path / "own_crowds.yaml"
    crowds.write_text(json.dumps(content))
    options = ["--write-config", str(path), "--device", "cpu"]
    code, printed = inspect(crowds, *options)
    assert code == 1 and "DATASETS.CROWDS objects" in printed and not path.exists()
    code, _ = inspect(crowds, *options, "DATASETS.CROWDS", "objects")
    cfg = load_config(str(path))
    assert code == 0 and cfg.MODEL.MASK_ON and cfg.DATASETS.CROWDS == "objects"


def test_write_config_never_replaces_its_data(inspect, shapes, tmp_path):
    copy = tmp_path / "own_train.json"
    copy.write_text((shapes / "annotations" / "train.json").read_text())
    before = copy.read_text()
    code, _ = inspect(copy, "--write-config", str(tmp_path / "own.yaml"), "--overwrite")
    assert code == 1 and copy.read_text() == before
