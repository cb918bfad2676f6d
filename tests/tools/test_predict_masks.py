import json
import logging
import runpy
import shutil

import pytest
import small_model


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    small_model.write_odd_data(folder, num_images=3)
    small_model.write_checkpoint(folder, small_model.options(folder, "predict_masks"))
    return folder


@pytest.fixture
def predict_masks(setting, tmp_path):
    """Function: annotation file, further arguments -> exit code and the output's path."""
    folder = setting
    main = runpy.run_path(str(small_model.ROOT / "tools" / "predict_masks.py"))["main"]

    def run(json_file, *args):
        output = tmp_path / "out" / "masks.json"
        paths = {
            "--weights": folder / "model_final.pth",
            "--json": json_file,
            "--images": folder / "train",
            "--output": output,
        }
        return main([*(str(x) for pair in paths.items() for x in pair), *args]), output

    return run


def test_predicts_and_compares(setting, predict_masks, capsys):
    annotations = setting / "annotations"
    full = str(annotations / "train_full.json")
    code, output = predict_masks(annotations / "train.json", "--compare", full)
    assert code == 0
    printed = capsys.readouterr().out
    assert "| novel" in printed and "| base" not in printed
    assert any("mask_score" in x for x in json.loads(output.read_text())["annotations"])
    code, _ = predict_masks(full, "--all", "--compare", full)
    assert code == 0 and "| base" in capsys.readouterr().out


def test_polygons(setting, predict_masks, capsys, caplog, monkeypatch):
    # Directly: programs keep records from the root logger.
    logger = logging.getLogger("contrastmask.predict_masks")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    annotations = setting / "annotations"
    args = ["--mask-format", "polygon", "--compare", str(annotations / "train_full.json")]
    code, output = predict_masks(annotations / "train.json", *args, "--tolerance", "0.5")
    assert code == 0 and "IoU of polygons with the masks: mean" in caplog.text
    written = json.loads(output.read_text())["annotations"]
    assert all(type(x["segmentation"]) is list for x in written if "mask_score" in x)
    assert "| novel" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        predict_masks(annotations / "train.json", "--tolerance", "-1")
    assert "--tolerance must be 0 or more, got -1.0" in capsys.readouterr().err


def test_exit_codes(setting, predict_masks, tmp_path, capsys):
    content = json.loads((setting / "annotations" / "train.json").read_text())
    for x in content["annotations"]:
        x.pop("segmentation", None)
    content["images"][1]["file_name"] = "none.jpg"
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    code, output = predict_masks(path)
    assert code == 3 and output.exists()
    for x in content["categories"]:
        x["name"] = f"unheard of {x['name']}"
    path.write_text(json.dumps(content))
    shutil.rmtree(output.parent)
    capsys.readouterr()
    code, output = predict_masks(path)
    assert code == 1 and not output.exists()
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "boxes.json" in error and "unheard of" in error
    with pytest.raises(SystemExit):
        predict_masks(path, "--compare", "none.json")


def test_file_to_compare_with(setting, predict_masks, tmp_path):
    train, full = (setting / "annotations" / f"{x}.json" for x in ("train", "train_full"))
    path = tmp_path / "full.json"
    path.write_text(full.read_text()[:1000])
    code, output = predict_masks(train, "--compare", str(path))
    assert code == 1 and not output.parent.exists()
    content = json.loads(full.read_text())
    for image in content["images"]:
        image["width"] += 1
    for x in content["annotations"]:
        left, top, width, height = x["bbox"]
        x["segmentation"] = [[left, top, left + width, top, left, top + height]]
    path.write_text(json.dumps(content))
    code, output = predict_masks(train, "--compare", str(path))
    assert code == 4 and output.exists()
