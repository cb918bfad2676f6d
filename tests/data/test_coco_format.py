import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from annotation_samples import SQUARE, make_annotation, make_content, make_rle
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json

from contrastmask.data.coco_format import load_partial_coco
from contrastmask.data.segmentation import rle_run_lengths


@pytest.fixture
def load(tmp_path):
    """Function: content (or text) of an annotation file, dataset name -> dataset dicts."""
    image_dir = tmp_path / "images"
    image_dir.mkdir()
    for name in ("a.png", "b é.png"):
        (image_dir / name).touch()

    def write_and_load(content, name=None, loader=load_partial_coco):
        text = content if isinstance(content, str) else json.dumps(content)
        path = tmp_path / "file.json"
        path.write_text(text, encoding="utf-8")
        return loader(str(path), str(image_dir), name)

    write_and_load.path = tmp_path / "file.json"
    write_and_load.image_dir = image_dir
    return write_and_load


def test_same_as_detectron2_where_both_can_load(load):
    annotations = [
        make_annotation(11),
        make_annotation(12, segmentation=make_rle(True), category_id=0),
        make_annotation(13, segmentation=make_rle(False), image_id=3),
        make_annotation(14, segmentation=[SQUARE, [1.0, 2.0, 3.0]]),
        make_annotation(15, segmentation=make_rle(False), iscrowd=1),
    ]
    ours = load(make_content(annotations), "coco_format_ours")
    theirs = load(make_content(annotations), "coco_format_theirs", load_coco_json)
    for dataset_dict in (*ours, *theirs):
        for annotation in dataset_dict["annotations"]:
            annotation.pop("id", None)
            if annotation["iscrowd"]:  # the mapper leaves crowds out: their masks are not kept
                annotation.pop("segmentation", None)
    assert ours == theirs
    metadata = MetadataCatalog.get("coco_format_ours")
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {0: 0, 40: 1}


def test_everything_is_counted_and_logged_once(load, caplog):
    annotations = [
        make_annotation(0),
        make_annotation(21, segmentation=[[1.0, 2.0]]),
        make_annotation(22, segmentation=None),
        make_annotation(23, iscrowd=1),
        make_annotation(24, bbox=[3, 3, 0, 5]),
        make_annotation(25, bbox=[100, 3, 10, 5]),
        make_annotation(26, bbox=[5, 5, -2, 5]),
        make_annotation(27, ignore=1),
        make_annotation(28, segmentation=[SQUARE, [1.0, 2.0], [40.0, 2.0, 50.0, 2.0, 50.0, 9.0]]),
        make_annotation(29, segmentation=[[40.0, 2.0, 50.0, 2.0, 50.0, 9.0]]),
    ]
    with caplog.at_level("INFO", logger="contrastmask"):
        for _ in range(2):
            loaded = load(make_content(annotations))
    assert [a["id"] for a in loaded[1]["annotations"]] == [0, 21, 22, 23, 28, 29]
    (table,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Loaded")]
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()[3:]]
    assert sorted(cells) == sorted(
        [
            ["mask", "1", ""],
            ["mask, some of its polygons unusable and left out", "1", "28"],
            ["box only: no usable mask in its segmentation", "2", "21, 29"],
            ["box only: no segmentation", "1", ""],
            ["crowd", "1", ""],
            ["box without area in the image, left out", "3", "24, 25, 26"],
            ["marked 'ignore', left out", "1", "27"],
        ]
    )
    assert sum("id 0" in r.getMessage() for r in caplog.records) == 1


def test_images_in_subfolders(load):
    content = make_content([])
    (load.image_dir / "deep" / "er").mkdir(parents=True)
    (load.image_dir / "deep" / "er" / "c.png").touch()
    content["images"][0]["file_name"] = "deep/er/c.png"
    assert load(content)[1]["file_name"] == str(load.image_dir / "deep" / "er" / "c.png")


def test_rle_run_lengths_agree_with_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = rng.integers(1, 60, 2)
        mask = np.asfortranarray(rng.random((height, width)) < rng.random(), dtype=np.uint8)
        runs = rle_run_lengths(mask_util.encode(mask))
        expanded = np.repeat(np.arange(runs.size) % 2, runs)
        assert np.array_equal(expanded, mask.ravel(order="F"))
