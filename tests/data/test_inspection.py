import json

import cv2
import numpy as np
import pytest
from annotation_samples import (
    HEIGHT,
    IMAGE_SIZES,
    OTHER_HEIGHT,
    OTHER_WIDTH,
    SQUARE,
    WIDTH,
    make_annotation,
    make_content,
    make_rle,
)
from PIL import Image

from contrastmask.data.class_split import ClassSplit
from contrastmask.data.images import ImageReader, read_headers
from contrastmask.data.inspection import inspect_annotation_file
from contrastmask.data.reading_report import names


@pytest.fixture
def paths(tmp_path):
    """Function: content of an annotation file -> its path and the folder of its two images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in IMAGE_SIZES.items():
        data = cv2.imencode(".png", np.zeros((*size, 3), np.uint8))[1]
        (folder / name).write_bytes(data.tobytes())

    def write(content):
        path = tmp_path / "file.json"
        path.write_text(json.dumps(content) if not isinstance(content, str) else content)
        return str(path), str(folder)

    return write


def found(inspection, level=None):
    findings = inspection.report.findings
    return {x.what: x.where for x in findings if level in (None, x.level)}


def test_sound_file(paths):
    annotations = [
        make_annotation(1),
        make_annotation(2, bbox=[5, 4, 8, 5], segmentation=make_rle(True)),
        make_annotation(3, category_id=0, bbox=[1, 1, 4, 6], segmentation=None, image_id=3),
        make_annotation(5, category_id=7, bbox=[3, 3, 6, 6], segmentation=[SQUARE], image_id=3),
        make_annotation(6, category_id=7, bbox=[3, 9, 6, 9], segmentation=None, image_id=3),
    ]
    inspection = inspect_annotation_file(*paths(make_content(annotations)))
    assert inspection.class_names == ["cat", "eel", "dog"] and not inspection.report.findings
    cat, eel, dog = inspection.statistics
    assert (cat.num_instances, cat.num_masks, cat.box_sizes) == (1, 0, [(4, 6)])
    assert (eel.num_instances, eel.num_masks) == (2, 1)
    assert dog.mask_areas[1] == 5 * 8 and dog.box_sizes[1] == (8, 5)
    split = ClassSplit(("cat", "eel", "dog"), base=(2,), novel=(0,))
    table = inspection.table_of_classes(split)
    cells = [[c.strip() for c in x.split("|")[1:-1]] for x in table.splitlines()[2:5]]
    assert [x[:4] for x in cells] == [
        ["cat", "novel", "1", "0"],
        ["eel", "unused", "2", "1"],
        ["dog", "base", "2", "2"],
    ]
    assert cells[2][4] == "9 x 6" and cells[0][4:] == ["4 x 6", "-", "-"]
    assert "3 classes, 5 instances, 3 with a mask, in 2 usable images" in table
    assert "No problems" in inspection.table_of_findings()


def test_crowds_do_not_count(paths):
    crowd = make_annotation(4, category_id=0, iscrowd=1, segmentation=make_rle(False))
    inspection = inspect_annotation_file(*paths(make_content([make_annotation(1), crowd])))
    assert [x.num_instances for x in inspection.statistics] == [0, 0, 1]
    assert not inspection.report.errors
    warnings = found(inspection, "warning")
    assert any("CVAT" in x for x in warnings)
    (without,) = [entries for what, entries in warnings.items() if "without instances" in what]
    assert without == ["'eel'"]  # of the cat there are crowds


def test_all_problems_are_found_at_once(paths, tmp_path):
    annotations = [
        make_annotation(1, bbox=[2, 2, 20, 15], segmentation=[SQUARE]),
        make_annotation(2, bbox=[2, 2, 10, 0], segmentation=[]),
        make_annotation(3, bbox=[50, 2, 10, 8], segmentation=[]),
        make_annotation(4, bbox=[-5, 2, 17, 8], segmentation=[]),
        make_annotation(5, bbox=[3, 2, 9, 8], segmentation=[[3, 2, 12, 10]]),
        make_annotation(15, bbox=[2, 2, "x", 8]),
        make_annotation(6, category_id=99),
        make_annotation(7, segmentation=[SQUARE, [None, 1, 2, 3, 4, 5]]),
        make_annotation(8, segmentation=make_rle(True, 30, 20)),
        make_annotation(9, bbox=[3, 3, 6, 6], segmentation=[SQUARE]),
        make_annotation(10, bbox=[3, 3, 6, 6], segmentation=[SQUARE]),
        make_annotation(11, category_id=98),
        make_annotation(12, image_id=8),
    ]
    content = make_content(annotations)
    content["images"] += [
        {"id": 8, "file_name": "none.png", "height": 20, "width": 30},
        {"id": 9, "file_name": "damaged.png", "height": 20, "width": 30},
        {"id": 10, "file_name": "turned.png", "height": 30, "width": 20},
        {"id": 11, "height": 30, "width": 20},
    ]
    json_file, folder = paths(content)
    (tmp_path / "images" / "damaged.png").write_text("not an image")
    Image.new("RGB", (30, 20)).save(tmp_path / "images" / "turned.png")
    inspection = inspect_annotation_file(json_file, folder)
    errors, warnings = found(inspection, "error"), found(inspection, "warning")
    assert {k.split(" (")[0][:52]: v for k, v in errors.items()} == {
        "'bbox' must be 4 numbers of pixels": ["annotation 15 (image 7), got [2, 2, 'x', 8]"],
        "'categories' has no category with its category_id": [
            "annotation 6 (image 7), got 99",
            "annotation 11 (image 7), got 98",
        ],
        "a polygon must be numbers of pixels": ["annotation 7 (image 7), got 'null'"],
        "the size": ["annotation 8 (image 7), got [30, 20]"],
        f"missing image file in '{folder}'"[:52]: ["none.png"],
        "image file that cannot be used": [errors["image file that cannot be used"][0]],
        "image file of another size than the annotations say": [
            f"image 10, got {folder}/turned.png: 30 x 20, not 20 x 30"
        ],
        "it has no 'file_name'": ["image 11"],
    }
    assert "damaged.png" in errors["image file that cannot be used"][0]
    assert {k.split(",")[0].split(":")[0][:40]: v for k, v in warnings.items()} == {
        "mask that does not fit its box": ["annotation 1 (image 7)"],
        "box without area": ["annotation 2 (image 7)"],
        "box outside of its image": ["annotation 3 (image 7)"],
        "box partly outside of its image": ["annotation 4 (image 7)"],
        "segmentation without three points": ["annotation 5 (image 7)"],
        "same class and box as another one of the": ["annotation 10 (image 7)"],
    }
    lines = inspection.table_of_findings().splitlines()[2:]
    assert [x.startswith("| error") for x in lines] == [True] * 8 + [False] * 6
    assert [x["image_id"] for x in inspection.records] == [3, 7]


def test_empty_classes_and_images(paths):
    inspection = inspect_annotation_file(*paths(make_content([make_annotation(1)])))
    assert found(inspection) == {
        "class without instances": ["'cat'", "'eel'"],
        "image without annotations, left out of training": ["image 3"],
    }


@pytest.mark.parametrize("size, number", [((26, 18), 0), ((18, 26), 1)])
def test_image_turned_by_exif(paths, tmp_path, size, number):
    """Width and height in the file are 18 and 26, which have to be those of the turned image."""
    json_file, folder = paths(make_content([make_annotation(1)]))
    image = Image.new("RGB", size)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "images" / "a.png", exif=exif)
    inspection = inspect_annotation_file(json_file, folder)
    errors, warnings = found(inspection, "error"), found(inspection, "warning")
    assert len(errors) == number and all("EXIF" in x[0] for x in errors.values())
    if not number:
        (where,) = [v for k, v in warnings.items() if "EXIF" in k]
        assert where == ["image 3"]


def test_png_headers_are_read_without_pixels(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 8
    paths = [str(tmp_path / name) for name in ("plain.png", "turned.png")]
    Image.new("RGB", (18, 26)).save(paths[0])
    Image.new("RGB", (18, 26)).save(paths[1], exif=exif)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", pytest.fail)
    assert read_headers(paths) == [((26, 18), 1, "RGB"), ((18, 26), 8, "RGB")]


@pytest.mark.parametrize("off, is_error", [(1, False), (2, True)])
@pytest.mark.parametrize("has_rle", [False, True])
@pytest.mark.parametrize("key", ["height", "width"])
def test_sizes_off_by_a_pixel(paths, key, off, is_error, has_rle):
    content = make_content([make_annotation(1), make_annotation(2, bbox=[4, 3, 8, 7])])
    image = content["images"][0]
    image[key] += off
    if has_rle:
        content["annotations"][1]["segmentation"] = make_rle(True, image["height"], image["width"])
        content["annotations"][1]["bbox"] = [5, 4, 8, 5]
    inspection = inspect_annotation_file(*paths(content))
    assert bool(inspection.report.errors) == (is_error or has_rle)
    if not inspection.report.errors:
        ((what, entries),) = found(inspection, "repaired").items()
        assert "pixel" in what and entries == ["image 7"]
        sizes = [(x["height"], x["width"]) for x in inspection.records]
        assert sizes == [(OTHER_HEIGHT, OTHER_WIDTH), (HEIGHT, WIDTH)]


def test_classes_are_shown_with_their_full_names(paths):
    content = make_content([make_annotation(1)])
    content["categories"][1]["name"], content["categories"][2]["name"] = "the cat", "the eel"
    table = inspect_annotation_file(*paths(content)).table_of_findings()
    assert "'the cat', 'the eel'" in table


def test_gray_levels_of_16_bits(paths, tmp_path):
    json_file, folder = paths(make_content([make_annotation(1)]))
    Image.fromarray(np.full((26, 18), 40_000, np.uint16)).save(tmp_path / "images" / "a.png")
    reader = ImageReader("RGB", gray_range=[0, 65535])
    assert "GRAY_RANGE" in str(found(inspect_annotation_file(json_file, folder), "error"))
    assert not inspect_annotation_file(json_file, folder, reader=reader).report.errors


def test_file_that_cannot_be_read(paths):
    json_file, folder = paths("{")
    inspection = inspect_annotation_file(json_file, folder)
    (error,) = inspection.report.errors
    assert "is not JSON" in error.what and json_file not in error.what
    assert not inspection.class_names


def test_messages_look_at_few_entries():
    """A file may have as many errors as entries."""

    def entries():
        yield from "abcd"
        raise AssertionError("all entries for one message")

    assert names(entries(), 3) == "a, b, c, ..."
    assert names("abc", 3) == "a, b, c" and names([]) == ""
