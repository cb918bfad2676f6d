import json

import cv2
import numpy as np
import pytest
from annotation_samples import SQUARE, TRIANGLE, make_annotation, make_content, make_rle

from contrastmask.data.inspection import inspect_annotation_file
from contrastmask.data.inspection_tables import format_classes, format_problems


@pytest.fixture
def paths(tmp_path):
    """Function: content of an annotation file -> its path and the folder of its two images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b é.png"):
        data = cv2.imencode(".png", np.zeros((20, 30, 3), np.uint8))[1]
        (folder / name).write_bytes(data.tobytes())

    def write(content):
        path = tmp_path / "file.json"
        path.write_text(json.dumps(content) if not isinstance(content, str) else content)
        return str(path), str(folder)

    return write


def found(inspection):
    return {problem.what: problem.where for problem in inspection.problems}


def test_sound_file(paths):
    annotations = [
        make_annotation(1),
        make_annotation(2, bbox=[5, 4, 8, 5], segmentation=make_rle(True)),
        make_annotation(3, category_id=0, bbox=[1, 1, 4, 6], segmentation=None, image_id=3),
        make_annotation(
            4, category_id=0, bbox=[1, 1, 4, 4], iscrowd=1, segmentation=make_rle(False)
        ),
    ]
    inspection = inspect_annotation_file(*paths(make_content(annotations)))
    assert inspection.class_names == ["cat", "dog"] and not inspection.problems
    cat, dog = inspection.statistics
    assert (cat.num_instances, cat.num_masks, cat.box_sizes) == (1, 0, [(4, 6)])
    assert (dog.num_instances, dog.num_masks) == (2, 2)
    assert dog.mask_areas[1] == 5 * 8
    table = format_classes(inspection)
    assert "2 classes, 3 instances, 2 with a mask, in 2 usable images" in table
    assert "No problems" in format_problems(inspection)


def test_all_problems_are_found_at_once(paths, tmp_path):
    annotations = [
        make_annotation(1, bbox=[2, 2, 20, 15], segmentation=[SQUARE]),
        make_annotation(2, bbox=[2, 2, 10, 0]),
        make_annotation(3, bbox=[50, 2, 10, 8]),
        make_annotation(4, bbox=[-5, 2, 17, 8], segmentation=[]),
        make_annotation(5, segmentation=[[1, 2, 3, 4]]),
        make_annotation(5, bbox=[2, 2, "x", 8]),
        make_annotation(6, category_id=99),
        make_annotation(7, segmentation=[SQUARE, [None] * 6]),
        make_annotation(8, segmentation=make_rle(True, 30, 20)),
        make_annotation(9, bbox=[3, 3, 6, 6], segmentation=[SQUARE]),
        make_annotation(10, bbox=[3, 3, 6, 6], segmentation=[SQUARE]),
        make_annotation(11, category_id=98),
    ]
    content = make_content(annotations)
    content["categories"] += [{"id": 50, "name": "eel"}, {"id": 51}]
    content["images"] += [
        {"id": 8, "file_name": "none.png", "height": 20, "width": 30},
        {"id": 9, "file_name": "damaged.png", "height": 20, "width": 30},
        {"id": 10, "file_name": "a.png", "height": 30, "width": 20},
        {"id": 11, "height": 30, "width": 20},
    ]
    json_file, folder = paths(content)
    (tmp_path / "images" / "damaged.png").write_text("not an image")
    inspection = inspect_annotation_file(json_file, folder)
    problems = found(inspection)
    assert problems.pop("image file that cannot be read")[0].startswith("damaged.png (")
    assert problems == {
        "mask that does not fit its box": ["annotation 1"],
        "box without area, left out": ["annotation 2"],
        "box outside its image, left out": ["annotation 3"],
        "box partly outside its image": ["annotation 4"],
        "segmentation without a usable mask, box only": ["annotation 5"],
        "duplicated annotation id": ["5 (2 times)"],
        "'bbox' must be numbers of pixels, between -100000 and 100000": [
            "annotation 5 (image 7), got 'x'"
        ],
        "'categories' has no category with its category_id": [
            "annotation 6 (image 7), got 99",
            "annotation 11 (image 7), got 98",
        ],
        "a polygon must be numbers of pixels, between -100000 and 100000": [
            "annotation 7 (image 7), got None"
        ],
        "the size (height, width) of its RLE is not that of its image": [
            "annotation 8 (image 7), got [30, 20], the image's is [20, 30]"
        ],
        "same class and box more than once in an image": ["annotation 9 = annotation 10"],
        "it has no 'name'": ["category 51"],
        "class without instances": ["'cat'", "'eel'"],
        "missing image file": ["none.png"],
        "image file of another size than the annotations say": ["a.png: 30 x 20, not 20 x 30"],
        "it has no 'file_name'": ["image 11"],
        "image without annotations, left out of training": [
            "image 3",
            "image 8",
            "image 9",
            "image 10",
        ],
    }
    assert {p.what for p in inspection.errors}.isdisjoint(
        {"class without instances", "mask that does not fit its box", "box without area, left out"}
    )
    lines = format_problems(inspection).splitlines()[2:]
    assert len(lines) == len(problems) + 1
    assert [line.startswith("| error") for line in lines] == [True] * 10 + [False] * 8


def test_image_turned_by_exif(paths, tmp_path):
    from PIL import Image

    json_file, folder = paths(make_content([make_annotation(1)]))
    image = Image.new("RGB", (20, 30))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "images" / "a.png", exif=exif)
    assert not inspect_annotation_file(json_file, folder).errors


def test_mask_fits_with_rounded_polygons(paths):
    polygons = [[x + 0.4 for x in TRIANGLE]]
    inspection = inspect_annotation_file(
        *paths(make_content([make_annotation(1, segmentation=polygons)]))
    )
    assert "mask that does not fit its box" not in found(inspection)
