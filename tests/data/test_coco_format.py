import copy
import json
import random

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from detectron2.structures import BoxMode

from contrastmask.data.coco_format import AnnotationFileError, load_partial_coco
from contrastmask.data.segmentation import rle_run_lengths

TRIANGLE = [2.0, 2.0, 12.0, 2.0, 12.0, 10.0]
SQUARE = [3.0, 3.0, 9.0, 3.0, 9.0, 9.0, 3.0, 9.0]


def _rle(compressed, height=20, width=30, empty=False):
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    if not empty:
        mask[4:9, 5:13] = 1
    rle = mask_util.encode(mask)
    if compressed:
        return {"size": [height, width], "counts": rle["counts"].decode()}
    return {"size": [height, width], "counts": rle_run_lengths(rle).tolist()}


def _annotation(annotation_id, **changes):
    annotation = {
        "id": annotation_id,
        "image_id": 7,
        "category_id": 40,
        "bbox": [2, 2, 10, 8],
        "area": 80,
        "iscrowd": 0,
        "segmentation": [TRIANGLE],
    }
    annotation.update(changes)
    return annotation


def _content(annotations):
    return {
        "images": [
            {"id": 7, "file_name": "b é.png", "height": 20, "width": 30},
            {"id": 3, "file_name": "a.png", "height": 20, "width": 30},
        ],
        "annotations": annotations,
        "categories": [{"id": 40, "name": "dog"}, {"id": 0, "name": "cat"}],
    }


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
        _annotation(11),
        _annotation(12, segmentation=_rle(True), category_id=0),
        _annotation(13, segmentation=_rle(False), image_id=3),
        _annotation(14, segmentation=[SQUARE, [1.0, 2.0, 3.0]]),
        _annotation(15, segmentation=_rle(False), iscrowd=1),
    ]
    ours = load(_content(annotations), "coco_format_ours")
    theirs = load(_content(annotations), "coco_format_theirs", load_coco_json)
    for dataset_dict in (*ours, *theirs):
        for annotation in dataset_dict["annotations"]:
            annotation.pop("id", None)
            if annotation["iscrowd"]:  # the mapper leaves crowds out: their masks are not kept
                annotation.pop("segmentation", None)
    assert ours == theirs
    metadata = MetadataCatalog.get("coco_format_ours")
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {0: 0, 40: 1}


NO_MASKS = {
    "no key": None,
    "null": None,
    "empty list": [],
    "empty polygon": [[]],
    "two points": [[1.0, 2.0, 3.0, 4.0]],
    "odd number of values": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]],
    "compressed RLE of area 0": _rle(True, empty=True),
    "uncompressed RLE of area 0": _rle(False, empty=True),
    "RLE without runs": {"size": [20, 30], "counts": []},
    "empty object": {},
}


@pytest.mark.parametrize("kind", NO_MASKS)
def test_box_only(load, kind):
    annotation = _annotation(1, segmentation=NO_MASKS[kind])
    if kind == "no key":
        del annotation["segmentation"]
    (loaded,) = load(_content([annotation]))[1]["annotations"]
    assert loaded == {
        "id": 1,
        "bbox": [2, 2, 10, 8],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 1,
        "iscrowd": 0,
    }


def test_an_instance_keeps_its_good_polygons(load):
    annotation = _annotation(1, segmentation=[[1.0, 1.0], TRIANGLE, [], SQUARE])
    (loaded,) = load(_content([annotation]))[1]["annotations"]
    assert loaded["segmentation"] == [TRIANGLE, SQUARE]


def test_everything_is_counted_and_logged_once(load, caplog):
    annotations = [
        _annotation(0),
        _annotation(21, segmentation=[[1.0, 2.0]]),
        _annotation(22, segmentation=None),
        _annotation(23, iscrowd=1),
        _annotation(24, bbox=[3, 3, 0, 5]),
        _annotation(25, bbox=[100, 3, 10, 5]),
        _annotation(26, bbox=[5, 5, -2, 5]),
        _annotation(27, ignore=1),
    ]
    with caplog.at_level("INFO", logger="contrastmask"):
        for _ in range(2):
            loaded = load(_content(annotations))
    assert [a["id"] for a in loaded[1]["annotations"]] == [0, 21, 22, 23]
    (table,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Loaded")]
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()[3:]]
    assert sorted(cells) == sorted(
        [
            ["mask", "1", ""],
            ["box only: no usable mask in its segmentation", "1", "21"],
            ["box only: no segmentation", "1", ""],
            ["crowd", "1", ""],
            ["box without area in the image, left out", "3", "24, 25, 26"],
            ["marked 'ignore', left out", "1", "27"],
        ]
    )
    assert sum("id 0" in r.getMessage() for r in caplog.records) == 1


_REMOVE = object()


def _set(*path_and_value):
    *parents, last, value = path_and_value

    def change(content):
        for key in parents:
            content = content[key]
        if value is _REMOVE:
            del content[last]
        else:
            content[last] = value

    return change


def _set_second_mask(segmentation):
    return _set("annotations", 1, "segmentation", segmentation)


def _runs(counts):
    return {"size": [20, 30], "counts": counts}


BAD_FILES = {
    "no images key": (_set("images", _REMOVE), "'images' is missing"),
    "annotations an object": (_set("annotations", {}), "'annotations' is not a list"),
    "no categories": (_set("categories", []), "'categories' is empty"),
    "no images": (_set("images", []), "'images' is empty"),
    "annotation a number": (_set("annotations", 1, 5), "entry 1 of 'annotations'"),
    "category without id": (_set("categories", 0, "id", _REMOVE), "a category has no whole number"),
    "category id is text": (_set("categories", 0, "id", "40"), "a category has no whole number"),
    "category without name": (
        _set("categories", 0, "name", _REMOVE),
        "category 40: it has no 'name'",
    ),
    "category ids double": (_set("categories", 0, "id", 0), "two categories have the id 0"),
    "category names double": (_set("categories", 0, "name", "cat"), "the name 'cat'"),
    "image without id": (_set("images", 0, "id", _REMOVE), "an image has no number"),
    "image ids double": (_set("images", 0, "id", 3), "two images have the id 3"),
    "image ids mixed": (_set("images", 1, "id", "x"), "some image ids are numbers"),
    "no file name": (_set("images", 0, "file_name", _REMOVE), "image 7: it has no 'file_name'"),
    "height is text": (_set("images", 0, "height", "20"), "image 7: 'height'"),
    "width 0": (_set("images", 0, "width", 0), "image 7: 'width'"),
    "no image_id": (_set("annotations", 0, "image_id", _REMOVE), "annotation 1 .*'image_id' is"),
    "unknown image": (_set("annotations", 0, "image_id", 99), r"annotation 1 \(image 99\)"),
    "image_id a list": (_set("annotations", 0, "image_id", [7]), "annotation 1 "),
    "unknown category": (
        _set("annotations", 1, "category_id", 41),
        "annotation 2 .*category_id; got 41",
    ),
    "no annotation id": (_set("annotations", 0, "id", _REMOVE), r"annotation None \(image 7\)"),
    "annotation ids double": (_set("annotations", 1, "id", 1), "two annotations have the id 1"),
    "no bbox": (_set("annotations", 0, "bbox", _REMOVE), "annotation 1 .*'bbox' is missing"),
    "bbox null": (_set("annotations", 0, "bbox", None), "annotation 1 .*4 numbers.*None"),
    "bbox of 3": (_set("annotations", 0, "bbox", [1, 2, 3]), "annotation 1 .*4 numbers"),
    "bbox with text": (_set("annotations", 1, "bbox", 3, "4"), "annotation 2 .*got '4'"),
    "bbox with null": (_set("annotations", 1, "bbox", 3, None), "annotation 2 .*got None"),
    "bbox with NaN": (_set("annotations", 1, "bbox", 2, float("nan")), "annotation 2 .*got nan"),
    "bbox infinite": (_set("annotations", 1, "bbox", 2, float("inf")), "annotation 2 .*got inf"),
    "bbox of 10**400": (_set("annotations", 1, "bbox", 2, 10**400), "annotation 2 .*got 1000"),
    "segmentation text": (_set_second_mask("x"), "annotation 2 .*its segmentation is a str"),
    "flat polygon": (_set_second_mask(SQUARE), "annotation 2 .*must be lists"),
    "polygon with null": (_set_second_mask([[None] * 6]), "annotation 2 .*got None"),
    "polygon with NaN": (_set_second_mask([[float("nan")] * 6]), "annotation 2 .*got nan"),
    "polygon far away": (_set_second_mask([[1e7] * 6]), "annotation 2 .*got 10000000.0"),
    "RLE of another size": (
        _set_second_mask(_rle(True, 30, 20)),
        r"annotation 2 .*size .* of its RLE.*got \[30, 20\].*is \[20, 30\]",
    ),
    "RLE without size": (_set_second_mask({"counts": "a"}), "annotation 2 .*needs 'size'"),
    "RLE counts a number": (_set_second_mask(_runs(600)), "annotation 2 .*are a int"),
    "RLE too long": (_set_second_mask(_runs([300, 301])), "annotation 2 .*do not add up"),
    "RLE too short": (_set_second_mask(_runs([300, 299])), "annotation 2 .*do not add up"),
    "RLE negative": (_set_second_mask(_runs([-5, 605])), "annotation 2 .*do not add up"),
    "RLE overflow": (_set_second_mask(_runs([2**62] * 4 + [600])), "annotation 2 .*do not add up"),
    "RLE of text": (_set_second_mask(_runs(["600"])), "annotation 2 .*not whole numbers"),
    "RLE cut off": (_set_second_mask(_runs("dP")), "annotation 2 .*damaged"),
    "RLE not ASCII": (_set_second_mask(_runs("é0")), "annotation 2 .*damaged"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_errors_name_file_and_entry(load, kind):
    change, message = BAD_FILES[kind]
    content = _content([_annotation(1), _annotation(2)])
    load(content)
    change(content)
    with pytest.raises(AnnotationFileError, match=f"file.json: .*{message}"):
        load(content)


@pytest.mark.parametrize("text", ["", "[]", "[1", '{"images": [', "\x00", "[" * 100_000])
def test_files_that_are_not_coco(load, text):
    with pytest.raises(AnnotationFileError, match="file.json: is not"):
        load(text)


def test_missing_files_are_named(load, tmp_path):
    with pytest.raises(AnnotationFileError, match="nowhere.json: there is no such"):
        load_partial_coco(str(tmp_path / "nowhere.json"), str(tmp_path))
    with pytest.raises(AnnotationFileError, match="cannot be read"):
        load_partial_coco(str(tmp_path), str(tmp_path))
    content = _content([_annotation(1)])
    load(content)
    with pytest.raises(AnnotationFileError, match="file.json: the image folder .*elsewhere"):
        load_partial_coco(str(load.path), str(tmp_path / "elsewhere"))
    (load.image_dir / "a.png").unlink()
    with pytest.raises(AnnotationFileError, match=r"1 of 2 images are not in .*such as a\.png"):
        load(content)


def test_images_in_subfolders(load):
    content = _content([])
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


def _mutate(rng, content):
    """Change, remove or double one random entry."""
    replacements = [None, -1, 0, 7, 1e308, float("nan"), "", "x", [], {}, [[]], True, [1, 2], "dP0"]
    parent, key, node = None, None, content
    while isinstance(node, (dict, list)) and node and (parent is None or rng.random() < 0.8):
        parent = node
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = node[key]
    action = rng.random()
    if parent is None:
        return
    if action < 0.6:
        parent[key] = rng.choice(replacements)
    elif action < 0.8:
        del parent[key]
    elif isinstance(parent, list):
        parent.append(copy.deepcopy(node))


def test_mutated_files_load_or_give_our_error(load):
    rng = random.Random(0)
    base = _content(
        [
            _annotation(1, segmentation=[TRIANGLE, SQUARE]),
            _annotation(2, segmentation=_rle(True)),
            _annotation(3, segmentation=_rle(False), image_id=3),
            _annotation(4, category_id=0, iscrowd=1),
        ]
    )
    outcomes = {"loaded": 0, "error": 0}
    for _ in range(400):
        content = copy.deepcopy(base)
        for _ in range(rng.randint(1, 3)):
            _mutate(rng, content)
        text = json.dumps(content)
        if rng.random() < 0.1:
            text = text[: rng.randrange(len(text))]
        try:
            load(text)
            outcomes["loaded"] += 1
        except AnnotationFileError as error:
            assert str(load.path) in str(error)
            outcomes["error"] += 1
    assert min(outcomes.values()) > 30
