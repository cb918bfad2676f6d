"""Thousands of damaged files: each gives a result, or an error that names it. Never a hang."""

import copy
import faulthandler
import json
import os
import random
import time
from collections import Counter

import numpy as np
import pytest
from annotation_samples import (
    IMAGE_SIZES,
    OTHER_HEIGHT,
    OTHER_WIDTH,
    SQUARE,
    TRIANGLE,
    make_annotation,
    make_content,
    make_rle,
)
from given import sample_image

from contrastmask.data import AnnotationFileError, ContrastMaskDatasetMapper, read_annotations
from contrastmask.data.images import ImageFileError
from contrastmask.data.inspection import inspect_annotation_file

TIME_LIMIT = 20  # seconds for one file
REPLACEMENTS = [
    *(None, -1, 0, 7, 1e308, float("nan"), float("-inf"), 10**40, 99_999, -99_999.5, 0.3, 20.0),
    *("", "x", "dP0", "40", "\ud800", "a.png", [], {}, [[]], True, [1, 2], [[2.0] * 8]),
    *([0, 600], {"size": [20, 30], "counts": [600]}, {"size": [20, 30], "counts": "PPPP"}),
]


@pytest.fixture(autouse=True)
def end_of_time():
    """Ends the tests with a traceback of all threads should a file take for ever."""
    faulthandler.dump_traceback_later(1800, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in IMAGE_SIZES.items():
        sample_image(size).save(folder / name)
    return folder


def mappers():
    common = {"is_train": True, "augmentations": [], "image_format": "BGR"}
    return [
        ContrastMaskDatasetMapper(
            **common, use_instance_mask=True, instance_mask_format=x, recompute_boxes=recompute
        )
        for x, recompute in (("bitmask", False), ("bitmask", True), ("polygon", False))
    ]


def mutate(rng, content):
    """Change, remove, double or swap one random entry."""
    parent, key, node = None, None, content
    if "annotations" in content and rng.random() < 0.8:
        parent, key = content, "annotations"  # most of what can go wrong
        node = content[key]
    while isinstance(node, (dict, list)) and node and (parent is None or rng.random() < 0.9):
        parent = node
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = node[key]
    if parent is None:
        return
    action = rng.random()
    if action < 0.6:
        parent[key] = copy.deepcopy(rng.choice(REPLACEMENTS))
    elif action < 0.8:
        del parent[key]
    elif isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(node))
    elif isinstance(node, str) and node:
        at = rng.randrange(len(node))
        parent[key] = node[:at] + chr(rng.randrange(1, 300)) + node[at + 1 :]
    elif type(node) in (int, float):
        parent[key] = node * rng.choice([-1, 0.1, 10, 1000, 1e6])


def mutate_number(rng, content):
    """Change one number of a box, a polygon or an RLE."""
    node = rng.choice(content["annotations"])
    key = rng.choice([x for x in ("bbox", "segmentation") if node.get(x)])
    while isinstance(node[key], (list, dict)) and node[key]:
        node = node[key]
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
    if type(node[key]) in (int, float):
        node[key] = rng.choice([node[key] * x for x in (-1, 0.1, 3, 1000)] + [rng.uniform(-9, 40)])


def mutated_text(rng):
    content = make_content(
        [
            make_annotation(1, segmentation=[TRIANGLE, SQUARE]),
            make_annotation(2, segmentation=make_rle(True)),
            make_annotation(3, segmentation=make_rle(False, OTHER_HEIGHT, OTHER_WIDTH), image_id=3),
            make_annotation(4, category_id=0, iscrowd=1),
            make_annotation(5, bbox=[-3, 2.5, 9, 60], segmentation=None),
        ]
    )
    content = copy.deepcopy(content)  # the polygons are shared
    for _ in range(rng.choice([0, 1, 5, 20])):
        mutate_number(rng, content)
    for _ in range(rng.choice([0, 1, 1, 3])):
        mutate(rng, content)
    data = json.dumps(content, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        return data[: rng.randrange(len(data))]
    if rng.random() < 0.1:
        at = rng.randrange(len(data))
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    return data


def use_annotation_file(path, folder):
    """What training does with it: "used", or the reason why it cannot be used."""
    try:
        records = read_annotations(path, folder).records
    except AnnotationFileError as error:
        assert str(error).startswith(path) and len(str(error)) < 1000
        return error.reason.split(", such as")[0]
    for record in records:
        for mapper in mappers():
            instances = with_its_rle(mapper, record)
            assert np.isfinite(instances.gt_boxes.tensor.numpy()).all()
            assert len(instances.gt_masks) == len(instances.gt_has_mask) == len(instances)
    return "used"


def with_its_rle(mapper, record):
    try:
        return mapper(record)["instances"]
    except ValueError as error:
        # The only reasons that are left to the mapper.
        is_rle = "INPUT.MASK_FORMAT bitmask" in str(error) and "Annotation" in str(error)
        is_size = isinstance(error, ImageFileError) and "expect" in str(error)
        assert is_rle and mapper.instance_mask_format == "polygon" or is_size
        assert record["file_name"] in str(error)
        height, width = IMAGE_SIZES[os.path.basename(record["file_name"])]
        return mapper({**record, "annotations": [], "height": height, "width": width})["instances"]


def check_annotation_files(tmp_path, images, number, seed):
    rng = random.Random(seed)
    path = str(tmp_path / "file.json")
    outcomes, slowest = Counter(), 0.0
    for _ in range(number):
        text = mutated_text(rng)
        with open(path, "wb") as f:
            f.write(text)
        start = time.monotonic()
        outcome = use_annotation_file(path, str(images))
        inspection = inspect_annotation_file(path, str(images))
        slowest = max(slowest, time.monotonic() - start)
        outcomes[outcome] += 1
        if outcome != "used":
            assert inspection.report.errors, text
    assert slowest < TIME_LIMIT
    return outcomes, slowest


FORMATS = (
    ("a.jpg", {"quality": 90}),
    ("a.jpg", {"progressive": True}),
    ("a.png", {}),
    ("a.png", {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03" + bytes(9)}),
    ("a.gif", {}),
    ("a.webp", {}),
    ("a.bmp", {}),
    ("a.tif", {"compression": "tiff_lzw"}),
)


def check_image_files(tmp_path, number, seed):
    rng = random.Random(seed)
    mapper = mappers()[0]
    outcomes, slowest = Counter(), 0.0
    for i in range(number):
        name, params = FORMATS[i % len(FORMATS)]
        path = tmp_path / name
        sample_image().save(path, **params)
        data = bytearray(path.read_bytes())
        if rng.random() < 0.4:
            data = data[: rng.randrange(len(data))]
        else:
            for _ in range(rng.choice([1, 3, 20])):
                data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        record = {"file_name": str(path), "image_id": 7, "height": 20, "width": 30}
        start = time.monotonic()
        try:
            image = mapper({**record, "annotations": []})["image"]
            assert tuple(image.shape) == (3, 20, 30)
            outcomes["used"] += 1
        except ImageFileError as error:
            assert str(error).startswith(f"image {path} (id 7) cannot be used: ")
            outcomes["error"] += 1
        slowest = max(slowest, time.monotonic() - start)
    assert slowest < TIME_LIMIT
    return outcomes, slowest


def test_mutated_annotation_files(tmp_path, images):
    outcomes, _ = check_annotation_files(tmp_path, images, number=400, seed=0)
    assert 40 < outcomes["used"] < 360 and len(outcomes) > 15


@pytest.mark.filterwarnings("ignore")  # Pillow warns about damaged metadata
def test_mutated_image_files(tmp_path):
    outcomes, _ = check_image_files(tmp_path, number=160, seed=0)
    assert min(outcomes["used"], outcomes["error"]) > 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_mutated_files(tmp_path, images, capsys):
    files, slowest_file = check_annotation_files(tmp_path, images, number=5000, seed=1)
    pictures, slowest_picture = check_image_files(tmp_path, number=2000, seed=1)
    with capsys.disabled():
        print(f"\n{sum(files.values())} annotation files, slowest {slowest_file:.1f} s:")
        for outcome, count in files.most_common():
            print(f"{count:6} {outcome}")
        print(f"{sum(pictures.values())} images, slowest {slowest_picture:.1f} s: {dict(pictures)}")
