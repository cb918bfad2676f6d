"""Train, delete training data and config, and use the checkpoint in every program."""

import json
import logging
import os
import runpy
import shutil
import subprocess
import sys

import pytest
import small_model
import torch
import yaml
from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger

import train_net
from contrastmask import Predictor
from contrastmask.data.shapes import SHAPE_NOVEL_CLASSES

ROOT = small_model.ROOT
HIDDEN = "star"  # has masks in the training file, and is not to be learned from


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with a checkpoint, test data and results; training data is gone, the config moved."""
    folder = tmp_path_factory.mktemp("enough")
    small_model.write_odd_data(folder, "train")
    small_model.write_odd_data(folder, "val", num_images=4, seed=8)
    data = [
        [f"enough_{split}", str(folder / "annotations" / file), str(folder / split)]
        for split, file in (("train", "train.json"), ("val", "val_full.json"))
    ]
    opts = small_model.options(folder, "unused")
    settings = {k: yaml.safe_load(v) for k, v in zip(opts[::2], opts[1::2])}
    settings.update(
        {
            "DATASETS.COCO_FORMAT": data,
            "DATASETS.TRAIN": ["enough_train"],
            "DATASETS.TEST": ["enough_val"],
            "DATASETS.BASE_CLASSES": ["auto"],
            "INPUT.MIN_SIZE_TRAIN": [64],
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.MAX_ITER": 2,
            "SOLVER.CHECKPOINT_PERIOD": 1,
            "TEST.REPORT": False,
            "OUTPUT_DIR": str(folder / "out"),
        }
    )
    content = {"_BASE_": small_model.CONFIG_FILE}
    for key, value in settings.items():
        *parents, last = key.split(".")
        section = content
        for x in parents:
            section = section.setdefault(x, {})
        section[last] = value if value is not None else ""
    config = folder / "own.yaml"
    config.write_text(yaml.safe_dump(content))
    # Another process, or this one would remember what it read.
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    config.rename(folder / "moved.yaml")
    shutil.rmtree(folder / "train")
    for name in ("train.json", "train_full.json"):
        (folder / "annotations" / name).unlink()
    return folder


@pytest.fixture(autouse=True)
def fresh_loggers():
    """Programs log to the terminal of their own test."""
    yield
    for name in ("contrastmask", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    setup_logger.cache_clear()


@pytest.fixture
def run(trained, tmp_path, monkeypatch, capsys):
    """Function: program, arguments -> exit code; it runs in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(program, *args):
        main = runpy.run_path(str(ROOT / program))["main"]
        return main([str(x) for x in args])

    return run


def test_every_checkpoint_describes_the_model(trained):
    for name in ("model_0000000.pth", "model_final.pth"):
        content = torch.load(trained / "out" / name, weights_only=True)
        predictor = Predictor(str(trained / "out" / name))
        assert content["contrastmask"]["base"] == list(predictor.base) and predictor.base
        assert content["trainer"]["base_classes"] == list(predictor.base)
        assert set(SHAPE_NOVEL_CLASSES) <= set(predictor.novel)
        assert len(predictor.class_names) == 14
    assert "enough_train" in content["contrastmask"]["config"]
    assert "enough_train" not in DatasetCatalog


def test_demo(trained, run, tmp_path):
    args = ["--weights", trained / "out" / "model_final.pth", "--explain"]
    assert run("demo/demo.py", *args, "--input", trained / "val", "--output", tmp_path) == 0
    assert len([x for x in tmp_path.iterdir() if "explained" not in x.name]) == 4


def test_predict_masks(trained, run, tmp_path):
    annotations = trained / "annotations"
    args = ["--weights", trained / "out" / "model_final.pth", "--images", trained / "val"]
    args += ["--json", annotations / "val.json", "--output", tmp_path / "out.json"]
    assert run("tools/predict_masks.py", *args, "--compare", annotations / "val_full.json") == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert any("mask_score" in x for x in content["annotations"])


def test_draw_predictions(trained, run, tmp_path):
    args = ["--weights", trained / "out" / "model_final.pth", "--output", tmp_path / "out.png"]
    assert run("tools/draw_predictions.py", *args, "--num-images", "2") == 0
    assert (tmp_path / "out.png").exists()


def evaluate(*args):
    return train_net.start(["--eval-only", *(str(x) for x in args)])


@pytest.mark.parametrize("config", [None, "moved.yaml"])
def test_evaluation(trained, tmp_path, config):
    """The config file leaves the number of classes to the data, like those of --write-config."""
    weights = ["MODEL.WEIGHTS", trained / "out" / "model_final.pth"]
    file = ["--config-file", trained / config] if config else []
    assert evaluate(*file, *weights, "OUTPUT_DIR", tmp_path) == 0
    before, after = (
        json.loads((x / "results.json").read_text()) for x in (trained / "out", tmp_path)
    )
    assert before == after
    assert set(before["gt_box_mask"]) == {"base", "novel", "all", "per_class"}
    assert None not in [before["gt_box_mask"][x]["IoU"] for x in ("base", "novel", "all")]
    assert before["classes"]["base"] == list(Predictor(str(weights[1])).base)


def test_evaluation_with_other_base_classes(trained, tmp_path):
    weights = ["MODEL.WEIGHTS", trained / "out" / "model_final.pth", "OUTPUT_DIR", tmp_path]
    assert evaluate(*weights, "DATASETS.BASE_CLASSES", f"['{HIDDEN}']") == 0
    classes = json.loads((tmp_path / "results.json").read_text())["classes"]
    assert classes["base"] == [HIDDEN] and len(classes["novel"]) == 13


def test_last_checkpoint_of_a_folder(trained, tmp_path):
    output = tmp_path / "copy"
    output.mkdir()
    shutil.copy(trained / "out" / "model_0000000.pth", output)
    (output / "last_checkpoint").write_text("model_0000000.pth")
    assert evaluate("--resume", "OUTPUT_DIR", output) == 0
    assert (output / "results.json").exists()


def error_line(capsys):
    """The last line on the terminal, which is the only one about an error."""
    captured = capsys.readouterr()
    shown = captured.err + captured.out
    assert "Traceback" not in shown and shown.count("error:") == 1
    return captured.err.splitlines()[-1]


def test_user_errors(trained, tmp_path, capsys):
    """One line; the traceback is in the log file."""
    weights = ["MODEL.WEIGHTS", trained / "out" / "model_final.pth", "OUTPUT_DIR", tmp_path / "out"]
    images = trained / "val"
    images.rename(trained / "moved")
    try:
        assert evaluate(*weights) == 1
    finally:
        (trained / "moved").rename(images)
    error = error_line(capsys)
    assert str(images) in error and "val_full.json" in error
    assert "Traceback" in (tmp_path / "out" / "log.txt").read_text()
    assert evaluate("--config-file", small_model.CONFIG_FILE, *weights) == 1
    assert "MODEL.FPN.OUT_CHANNELS" in error_line(capsys)
    assert evaluate() == 1 and "MODEL.WEIGHTS" in error_line(capsys)
    with pytest.raises(SystemExit):
        train_net.start([])
    assert "--config-file" in capsys.readouterr().err


def test_data_with_classes_in_another_order(trained, tmp_path, caplog):
    """Classes are matched by name; one that only the file has is named."""
    content = json.loads((trained / "annotations" / "val_full.json").read_text())
    ids = [x["id"] for x in content["categories"]]
    new_ids = dict(zip(ids, ids[3:] + ids[:3]))
    for x in content["categories"]:
        x["id"] = new_ids[x["id"]]
    for x in content["annotations"]:
        x["category_id"] = new_ids[x["category_id"]]
    content["categories"] = [{"id": 1 + max(ids), "name": "spoon"}, *content["categories"][::-1]]
    (tmp_path / "rotated.json").write_text(json.dumps(content))
    data = [["enough_rotated", str(tmp_path / "rotated.json"), str(trained / "val")]]
    args = ["MODEL.WEIGHTS", trained / "out" / "model_final.pth", "OUTPUT_DIR", tmp_path]
    args += ["DATASETS.COCO_FORMAT", data, "DATASETS.TEST", "('enough_rotated',)"]
    assert evaluate(*args) == 0
    before, after = (
        json.loads((x / "results.json").read_text()) for x in (trained / "out", tmp_path)
    )
    before, after = ({**x, "dataset": None} for x in (before, after))
    assert before == after
    assert "spoon" in (tmp_path / "log.txt").read_text()


def test_data_without_a_class_of_the_model(trained, tmp_path, capsys):
    content = json.loads((trained / "annotations" / "val_full.json").read_text())
    for x in content["categories"]:
        x["name"] = f"old {x['name']}"
    (tmp_path / "other.json").write_text(json.dumps(content))
    data = [["enough_other", str(tmp_path / "other.json"), str(trained / "val")]]
    args = ["MODEL.WEIGHTS", trained / "out" / "model_final.pth", "OUTPUT_DIR", tmp_path]
    args += ["DATASETS.COCO_FORMAT", data, "DATASETS.TEST", "('enough_other',)"]
    assert evaluate(*args) == 1
    error = error_line(capsys)
    assert HIDDEN in error and "old arrow" in error and "other.json" in error
