import importlib.util
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest

from contrastmask.data import shapes
from contrastmask.data.shapes import SHAPE_CLASSES, SHAPE_NOVEL_CLASSES, ShapesParams, write_shapes

TOOL = Path(__file__).parents[2] / "tools" / "prepare_shapes.py"
PARAMS = ShapesParams(num_train=12, num_val=4, image_size=128, seed=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shapes"
    assert write_shapes(str(root), PARAMS)
    return root


def _load(root, name):
    return json.loads((root / "annotations" / f"{name}.json").read_text())


def _decode(segmentation, size):
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation).astype(bool)
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(segmentation, size, size))) > 0


def test_files_and_counts(data):
    assert len(SHAPE_CLASSES) >= 12
    for name, split, count in (
        ("train", "train", 12),
        ("train_full", "train", 12),
        ("val", "val", 4),
    ):
        content = _load(data, name)
        assert [c["name"] for c in content["categories"]] == list(SHAPE_CLASSES)
        assert len(content["images"]) == count
        for image in content["images"]:
            assert cv2.imread(str(data / split / image["file_name"])).shape == (128, 128, 3)


def test_novel_train_annotations_have_boxes_only(data):
    novel_ids = {SHAPE_CLASSES.index(name) + 1 for name in SHAPE_NOVEL_CLASSES}
    partial, full = _load(data, "train")["annotations"], _load(data, "train_full")["annotations"]
    assert len(partial) == len(full)
    assert {a["category_id"] in novel_ids for a in partial} == {True, False}
    for a, b in zip(partial, full):
        assert "segmentation" in b
        if a["category_id"] in novel_ids:
            expected = {k: v for k, v in b.items() if k != "segmentation"}
            assert a == {**expected, "area": b["bbox"][2] * b["bbox"][3]}
        else:
            assert a == b


def test_masks_fit_boxes_and_do_not_overlap():
    kinds = set()
    for number in range(30):
        _, objects = shapes.draw_image(160, [0, 0, number])
        masks = np.stack([mask for _, mask in objects])
        assert masks.sum(axis=0).max() <= 1  # visible parts only
        for _, mask in objects:
            annotation = shapes._annotation(mask, with_mask=True)
            kinds.add(type(annotation["segmentation"]))
            decoded = _decode(annotation["segmentation"], 160)
            assert (decoded & mask).sum() / (decoded | mask).sum() > 0.85
            rows, columns = np.where(mask)
            x, y, w, h = annotation["bbox"]
            assert [x, x + w] == [columns.min(), columns.max() + 1]
            assert [y, y + h] == [rows.min(), rows.max() + 1]
            assert annotation["area"] == mask.sum()
    assert kinds == {list, dict}


def test_polygons_lie_where_their_masks_do():
    """In COCO's pixels, whose centers are at halves."""
    offsets = []
    for number in range(40):
        for _, mask in shapes.draw_image(160, [2, 0, number])[1]:
            segmentation = shapes._annotation(mask, with_mask=True)["segmentation"]
            if isinstance(segmentation, list) and len(segmentation) == 1:
                x, y = np.array(segmentation[0]).reshape(-1, 2).T
                following = np.roll(x, -1), np.roll(y, -1)
                cross = x * following[1] - following[0] * y
                center = [
                    ((i + j) * cross).sum() / cross.sum() / 3 for i, j in zip((x, y), following)
                ]
                rows, columns = np.where(mask)
                offsets.append(np.subtract(center, (columns.mean() + 0.5, rows.mean() + 0.5)))
    assert len(offsets) > 60
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.05


def test_few_novel_shapes_fill_their_boxes():
    # What makes novel mask AP mean something: filled boxes are bad masks.
    fill = {name: [] for name in SHAPE_CLASSES}
    for number in range(60):
        for name, mask in shapes.draw_image(128, [1, 0, number])[1]:
            _, _, w, h = cv2.boundingRect(mask.astype(np.uint8))
            fill[name].append(mask.sum() / (w * h))
    assert all(len(values) > 3 for values in fill.values())
    novel = np.array([value for name in SHAPE_NOVEL_CLASSES for value in fill[name]])
    assert (novel > 0.5).mean() < 0.2


def test_an_image_depends_on_its_number_and_seed_only(data, tmp_path):
    write_shapes(str(tmp_path), ShapesParams(num_train=3, num_val=2, image_size=128, seed=3))
    for split, count in (("train", 3), ("val", 2)):
        for number in range(1, count + 1):
            name = f"{split}/{number:06d}.jpg"
            assert (tmp_path / name).read_bytes() == (data / name).read_bytes()
    few, many = _load(tmp_path, "train")["annotations"], _load(data, "train")["annotations"]
    assert few == many[: len(few)]
    train, val = (cv2.imread(str(data / split / "000001.jpg")) for split in ("train", "val"))
    assert (train != val).mean() > 0.5
    first, second = (shapes.draw_image(128, [seed, 0, 1])[0] for seed in (3, 4))
    assert (first != second).mean() > 0.5


def test_same_parameters_are_not_written_again(tmp_path):
    root = str(tmp_path)
    small = ShapesParams(num_train=1, num_val=1, image_size=64)
    assert write_shapes(root, small)
    json_file = tmp_path / "annotations" / "val.json"
    os.utime(json_file, (1, 1))
    assert not write_shapes(root, small)
    assert json_file.stat().st_mtime == 1
    assert write_shapes(root, ShapesParams(num_train=1, num_val=2, image_size=64))
    assert len(_load(tmp_path, "val")["images"]) == 2
    (tmp_path / "shapes.json").write_text('{"num_tr')  # as after a crash
    assert write_shapes(root, small)
    assert len(_load(tmp_path, "val")["images"]) == 1


def test_other_data_is_not_overwritten(tmp_path):
    small = ShapesParams(num_train=1, num_val=1, image_size=64)
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    for content in ('{"images": []}', "[]", '{"info": {"description": "mine"}}', "half a fi"):
        (annotations / "train.json").write_text(content)
        with pytest.raises(ValueError, match=rf"{tmp_path} holds other data: .*train\.json"):
            write_shapes(str(tmp_path), small)
        assert (annotations / "train.json").read_text() == content
        assert not (tmp_path / "train").exists()


def test_an_interrupted_run_is_done_again(tmp_path, monkeypatch):
    small = ShapesParams(num_train=1, num_val=1, image_size=64)
    original, written = shapes._write_json, []

    def interrupted(path, content):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        original(path, content)

    monkeypatch.setattr(shapes, "_write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(str(tmp_path), small)
    (tmp_path / "annotations" / "val.json.unfinished").write_text('{"info')  # as after a crash
    monkeypatch.undo()
    assert write_shapes(str(tmp_path), small)
    assert len(_load(tmp_path, "val")["images"]) == 1
    assert not write_shapes(str(tmp_path), small)


@pytest.mark.parametrize(
    "wrong", [{"num_train": 0}, {"num_val": -1}, {"image_size": 16}, {"seed": 1.5}]
)
def test_wrong_parameters_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ShapesParams(**wrong)


def test_command_line_tool(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("prepare_shapes", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    monkeypatch.setenv("DETECTRON2_DATASETS", f"~/{tmp_path.name}")  # as the dataset reads it
    arguments = ["--num-train", "2", "--num-val", "1", "--image-size", "96"]
    assert tool.main(arguments) == 0
    assert len(_load(tmp_path / "shapes", "train")["images"]) == 2
    assert tool.main([*arguments, "--image-size", "5"]) == 1
    assert "image_size" in capsys.readouterr().err
    assert tool.main([*arguments, "--output", str(tmp_path / "shapes" / "shapes.json")]) == 1
    assert "shapes.json" in capsys.readouterr().err
