"""Reading annotation files: what is repaired, refused, warned of, and left as it is."""

import copy
import gc
import json

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from annotation_samples import (
    HEIGHT,
    IMAGE_SIZES,
    OTHER_HEIGHT,
    OTHER_WIDTH,
    SQUARE,
    TRIANGLE,
    WIDTH,
    make_annotation,
    make_content,
    make_rle,
)
from detectron2.data.datasets.coco import load_coco_json

from contrastmask.data.annotation_values import Ids, ReadingOptions
from contrastmask.data.coco_format import AnnotationFileError, log_reading, read_annotations
from contrastmask.data.reading_report import ReadingReport

NAN = float("nan")


@pytest.fixture
def folder(tmp_path):
    """Folder with the two images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in IMAGE_SIZES.items():
        data = cv2.imencode(".png", np.zeros((*size, 3), np.uint8))[1]
        (folder / name).write_bytes(data.tobytes())
    return folder


@pytest.fixture
def read(tmp_path, folder):
    """Function: content or text of a file -> what :func:`read_annotations` gives."""

    def write_and_read(content, collect=False, loader=None, **options):
        path = tmp_path / "file.json"
        data = content if isinstance(content, (str, bytes)) else json.dumps(content)
        path.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
        if loader is not None:
            return loader(str(path), str(folder))
        report = ReadingReport(str(path), stop_at_errors=not collect)
        options = ReadingOptions(**options)
        return read_annotations(str(path), str(folder), options=options, report=report)

    return write_and_read


def sound_content():
    """Five annotations, of every class and in both images, no id or category in order."""
    return make_content(
        [
            make_annotation(15),
            make_annotation(11, category_id=0, bbox=[5, 4, 8, 5], segmentation=make_rle(True)),
            make_annotation(12, category_id=7, bbox=[3, 3, 6, 6], segmentation=[SQUARE]),
            make_annotation(
                14, image_id=3, category_id=0, bbox=[5, 4, 8, 5],
                segmentation=make_rle(False, OTHER_HEIGHT, OTHER_WIDTH),
            ),
            make_annotation(13, image_id=3, category_id=7, bbox=[1, 2, 9.5, 20], segmentation=[]),
        ]
    )  # fmt: skip


def found(annotations, level=None):
    """what -> entries, of the findings of a level."""
    return {x.what: x.where for x in annotations.report.findings if level in (None, x.level)}


def objects(annotations, with_id=True):
    """Image -> annotations with their ids in the file, boxes, classes by name, and mask areas."""
    result = {}
    for record in annotations.records:
        size = record["height"], record["width"]
        result[(record["file_name"], *size)] = [
            (
                x["id"] if with_id else None,
                annotations.class_names[x["category_id"]],
                x["iscrowd"],
                tuple(map(float, x["bbox"])),
                _area(x.get("segmentation"), size),
            )
            for x in record["annotations"]
        ]
    return result


def _area(segmentation, size):
    if segmentation is None:
        return None
    rles = (
        mask_util.frPyObjects(segmentation, *size)
        if isinstance(segmentation, list)
        else [segmentation]
    )
    return int(mask_util.area(mask_util.merge(rles)))


# -- the sound file ---------------------------------------------------------------------------


def test_sound_file(read):
    annotations = read(sound_content())
    assert not annotations.report.findings
    assert annotations.class_names == ["cat", "eel", "dog"] and annotations.category_ids == [
        0,
        7,
        40,
    ]
    first, second = annotations.records
    assert (first["image_id"], first["height"], first["width"]) == (3, OTHER_HEIGHT, OTHER_WIDTH)
    assert (second["image_id"], second["height"], second["width"]) == (7, HEIGHT, WIDTH)
    assert [x["id"] for x in second["annotations"]] == [15, 11, 12]
    assert [x["index"] for x in first["annotations"]] == [3, 4]
    assert [x["category_id"] for x in second["annotations"]] == [2, 0, 1]
    assert annotations.report.counts == {"mask": 4, "box only": 1}


def test_same_as_detectron2_where_both_can_read(read):
    content = sound_content()
    content["annotations"] += [make_annotation(16, iscrowd=1, segmentation=make_rle(True))]
    ours, theirs = read(content).records, read(content, loader=load_coco_json)
    for record in ours:
        for x in record["annotations"]:
            x.pop("id"), x.pop("index"), x.pop("area")
    assert len(ours) == len(theirs) == 2
    for a, b in zip(ours, theirs):
        # Without class names of a dataset Detectron2 leaves category ids as they are.
        to_file_ids = [0, 7, 40]
        for x in a["annotations"]:
            x["category_id"] = to_file_ids[x["category_id"]]
        assert a == b


# -- what is unusual and clear ----------------------------------------------------------------


def each(section, **values):
    def change(content):
        for entry in content[section]:
            for key, value in values.items():
                entry[key] = value(entry) if callable(value) else value

    return change


def one(section, index, **values):
    def change(content):
        for key, value in values.items():
            content[section][index][key] = value

    return change


def without(section, *keys):
    def change(content):
        for entry in content[section]:
            for key in keys:
                entry.pop(key, None)

    return change


def root_category(name, supercategory):
    def change(content):
        for x in content["categories"]:
            x["supercategory"] = supercategory
        content["categories"].insert(0, {"id": 5, "name": name, "supercategory": "none"})

    return change


REPAIRED = {
    "flat polygon": (one("annotations", 0, segmentation=TRIANGLE), "flat list", 1),
    "pairs": (one("annotations", 2, segmentation=[[3, 3], [9, 3], [9, 9], [3, 9]]), "pairs", 1),
    "points as objects": (
        one("annotations", 0, segmentation=[
            {"x": 2, "y": 2}, {"x": 12, "y": 2}, {"x": 12, "y": "10"},
        ]),
        None, 2,
    ),
    "a list of counts as text": (
        one("annotations", 3, segmentation={
            **make_rle(False, OTHER_HEIGHT, OTHER_WIDTH),
            "counts": json.dumps(make_rle(False, OTHER_HEIGHT, OTHER_WIDTH)["counts"]),
        }),
        "counts as the text", 1,
    ),
    "segmentation of a table program": (one("annotations", 4, segmentation="NaN"), None, 0),
    "rle in a list": (one("annotations", 1, segmentation=[make_rle(True)]), "RLE in a list", 1),
    "coordinates as text": (
        one("annotations", 0, segmentation=[[str(x) for x in TRIANGLE]]), "numbers as text", 1,
    ),
    "some coordinates as text": (
        one("annotations", 0, segmentation=[[*TRIANGLE[:5], str(TRIANGLE[5])]]), "as text", 1,
    ),
    "box as text": (one("annotations", 4, bbox=["1", "2.0", 9.5, "20"]), "numbers as text", 1),
    "box missing": (
        lambda x: x["annotations"][2].pop("bbox"), "taken from the mask", 1,
    ),
    "box empty": (one("annotations", 2, bbox=[]), "taken from the mask", 1),
    "box of zeros": (one("annotations", 2, bbox=[0, 0, 0, 0]), "taken from the mask", 1),
    "box of zeros beside an RLE": (one("annotations", 1, bbox=[0.0] * 4), "taken from the mask", 1),
    "box without width": (one("annotations", 2, bbox=[3, 3, 0, 6]), "taken from the mask", 1),
    "box outside": (one("annotations", 2, bbox=[300, 3, 6, 6]), "taken from the mask", 1),
    "box of NaN": (one("annotations", 2, bbox=[NAN] * 4), "taken from the mask", 1),
    "box of null": (one("annotations", 2, bbox=[None] * 4), "taken from the mask", 1),
    "box with a NaN": (one("annotations", 2, bbox=[3, NAN, 6, 6]), None, 2),
    "box from its last corner": (
        one("annotations", 4, bbox=[10.5, 22, -9.5, -20]), "right or bottom", 1,
    ),
    "box from its right side": (
        one("annotations", 4, bbox=[10.5, 2, -9.5, 20]), "right or bottom", 1,
    ),
    "box as JSON text": (one("annotations", 4, bbox="[1, 2, 9.5, 20]"), "box written as text", 1),
    "no sizes": (without("images", "height", "width"), "taken from the image file", 2),
    "a size null": (one("images", 1, height=None), "taken from the image file", 1),
    "sizes of zero": (each("images", height=0, width="0"), "taken from the image file", 2),
    "sizes as text": (
        each("images", height=lambda x: str(x["height"]), width=lambda x: str(x["width"])),
        "height or width as text", 4,
    ),
    "sizes as floats": (each("images", height=lambda x: float(x["height"])), "height or width", 2),
    "image ids as text in annotations": (
        each("annotations", image_id=lambda x: str(x["image_id"])), "'image_id' as text", 5,
    ),
    "image ids as floats in annotations": (
        each("annotations", image_id=lambda x: float(x["image_id"])), "'image_id' as text", 5,
    ),
    "image ids as text with zeros": (
        each("annotations", image_id=lambda x: f" 00{x['image_id']}.0"), "'image_id' as text", 5,
    ),
    "image ids under the key of annotations": (
        each("images", image_id=lambda x: x.pop("id")), None, 0,
    ),
    "category ids as text in annotations": (
        each("annotations", category_id=lambda x: str(x["category_id"])), "'category_id'", 5,
    ),
    "category ids as text": (
        each("categories", id=lambda x: str(x["id"])), "category id as text", 3,
    ),
    "category ids as floats": (
        each("categories", id=lambda x: float(x["id"])), "category id as text or as a float", 3,
    ),
    "annotation ids as floats": (each("annotations", id=lambda x: float(x["id"])), None, 0),
    "image ids as floats": (each("images", id=lambda x: float(x["id"])), None, 0),
    "iscrowd as text": (each("annotations", iscrowd="false"), "'iscrowd' as text", 5),
    "iscrowd 0 as text": (one("annotations", 0, iscrowd="0"), "'iscrowd' as text", 1),
    "iscrowd as text of a float": (one("annotations", 0, iscrowd="0.0"), "'iscrowd' as text", 1),
    "iscrowd NaN": (one("annotations", 0, iscrowd=NAN), "'iscrowd' as text", 1),
    "area NaN": (one("annotations", 0, area=NAN), "'area'", 1),
    "area as text": (one("annotations", 0, area="80.0"), "'area'", 1),
    "segmentation NaN": (one("annotations", 4, segmentation=NAN), None, 0),
    "segmentation missing": (lambda x: x["annotations"][4].pop("segmentation"), None, 0),
    "categories repeated": (
        lambda x: x["categories"].append(dict(x["categories"][1])), "category repeated", 1,
    ),
    "images repeated": (
        lambda x: x["images"].append({**x["images"][1], "license": 5}), "image entry repeated", 1,
    ),
    "unused category of the same name": (
        lambda x: x["categories"].append({"id": 9, "name": "eel"}), "unused category", 1,
    ),
    "Roboflow's root": (root_category("animals", "animals"), "Roboflow", 1),
    "Roboflow's root with the name of a class": (root_category("eel", "eel"), "Roboflow", 1),
    "backslashes": (
        each("images", file_name=lambda x: "C:\\a b\\" + x["file_name"]), "last part", 2,
    ),
    "URL escapes": (one("images", 0, file_name="b%20%C3%A9.png"), "URL escapes", 1),
    "another case": (one("images", 1, file_name="A.PNG"), "last part", 1),
    "an absolute folder": (one("images", 1, file_name="/home/me/data/a.png"), "last part", 1),
    "a foreign folder": (one("images", 1, file_name="train/a.png"), "last part", 1),
    "an upload of Label Studio": (
        one("images", 0, file_name="/data/local-files/?d=x/b%20%C3%A9.png"), "last part", 1,
    ),
    "a name with Label Studio's prefix": (
        one("images", 1, file_name="images\\0f3a99bc-a.png"), "last part", 1,
    ),
    "a URL with a query": (
        one("images", 1, file_name="https://x.org/d/a.png?token=3"), "last part", 1,
    ),
    "accents in another encoding": (
        one("images", 0, file_name="b e\u0301.png"), "last part", 1,
    ),
    "file name null, LVIS": (
        one("images", 1, file_name=None, coco_url="http://x.org/train/a.png"), "last part", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REPAIRED)
def test_understood_and_counted(read, kind):
    change, what, number = REPAIRED[kind]
    content = sound_content()
    expected = objects(read(copy.deepcopy(content)))
    change(content)
    annotations = read(content)
    assert objects(annotations) == expected
    assert not found(annotations, "error") and not found(annotations, "warning")
    repairs = found(annotations, "repaired")
    assert sum(map(len, repairs.values())) == number
    assert what is None or all(what in x for x in repairs)


@pytest.mark.parametrize(
    "ids", [[0] * 5, [None] * 5, [1, 2, 3, 1, 2], [5, "5", 6, 7, 8], [5, 6, 7, 8, [9]]]
)
def test_annotation_ids_are_numbered_where_they_are_not_unique(read, ids):
    content = sound_content()
    expected = objects(read(content), with_id=False)
    for x, new in zip(content["annotations"], ids):
        x["id"] = new
    annotations = read(content)
    assert objects(annotations, with_id=False) == expected
    first, second = annotations.records
    assert [x["id"] for x in second["annotations"]] == [1, 2, 3]
    assert [x["index"] for x in first["annotations"]] == [3, 4]
    (entries,) = found(annotations, "repaired").values()
    assert len(entries) == 5


def test_ids_that_are_unusual_and_unique_stay(read):
    content = sound_content()
    for x, new in zip(content["annotations"], [0, "a", -5, 10**30, "b"]):
        x["id"] = new
    annotations = read(content)
    assert [x["id"] for x in annotations.records[1]["annotations"]] == [0, "a", -5]
    assert not annotations.report.findings


def test_image_ids_as_text(read):
    content = sound_content()
    for x in content["images"]:
        x["id"] = f"00{x['id']}"
    for x in content["annotations"]:
        x["image_id"] = f"00{x['image_id']}"
    annotations = read(content)
    assert [x["image_id"] for x in annotations.records] == ["003", "007"]
    assert not annotations.report.findings
    content["annotations"][0]["image_id"] = 9
    with pytest.raises(AnnotationFileError, match=r"annotation 15 .*image_id .*; got 9"):
        read(content)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_byte_order_marks_and_encodings(read, encoding):
    data = json.dumps(sound_content(), ensure_ascii=False).encode(encoding)
    assert objects(read(data)) == objects(read(sound_content()))


def test_names_that_end_alike_are_no_repair(read, folder):
    content = sound_content()
    content["images"][0]["file_name"] = "one/a.png"
    content["images"][1]["file_name"] = "two/a.png"
    with pytest.raises(AnnotationFileError, match=r"2 of 2 images .*one/a.png, two/a.png"):
        read(content)
    (folder / "deep").mkdir()
    (folder / "deep" / "a.png").touch()
    content["images"][0]["file_name"] = "b é.png"
    with pytest.raises(AnnotationFileError, match=r"1 of 2 images .*two/a.png"):
        read(content)


def test_folders_tell_files_of_one_name_apart(read, folder):
    for name in ("one", "two"):
        (folder / "deep" / name).mkdir(parents=True)
        (folder / "deep" / name / "c.png").write_bytes((folder / "a.png").read_bytes())
    content = sound_content()
    content["images"][1]["file_name"] = "D:\\data\\two\\c.png"
    record = read(content).records[0]
    assert record["file_name"] == str(folder / "deep" / "two" / "c.png")
    content["images"][1]["file_name"] = "D:\\data\\three\\c.png"
    with pytest.raises(AnnotationFileError, match=r"1 of 2 images .*three"):
        read(content)


def test_a_class_keeps_one_of_its_unused_categories(read):
    content = sound_content()
    content["categories"] += [{"id": 9, "name": "owl"}, {"id": 11, "name": "owl"}]
    annotations = read(content)
    assert annotations.class_names == ["cat", "eel", "owl", "dog"]
    assert annotations.category_ids[2] == 11


def test_a_category_that_is_used_is_no_root(read):
    content = sound_content()
    root_category("eel", "eel")(content)
    content["annotations"][0]["category_id"] = 5
    with pytest.raises(AnnotationFileError, match="'eel'.*rename.*ids 5, 7"):
        read(content)
    content["categories"][0]["name"] = "animals"
    assert "animals" in read(content).class_names


# -- sizes of images --------------------------------------------------------------------------


def wrong_sizes():
    """Both images have other sizes than the file says; only annotation 12 reaches out of its."""
    content = sound_content()
    content["annotations"] = content["annotations"][2:3] + content["annotations"][4:]
    content["annotations"][0].update(bbox=[12, 9, 14, 2], segmentation=[[12, 9, 26, 9, 26, 11]])
    content["annotations"][1]["bbox"] = [1, 2, 7, 6]
    content["images"].reverse()  # images and annotations are in different orders
    for image in content["images"]:
        image.update(height=11, width=13)
    return content


def test_sizes_that_annotations_and_files_prove_wrong(read):
    annotations = read(wrong_sizes())
    sizes = {(x["height"], x["width"]) for x in annotations.records}
    assert sizes == {(HEIGHT, WIDTH), (OTHER_HEIGHT, OTHER_WIDTH)}
    ((what, entries),) = found(annotations).items()
    assert "image file" in what and entries == ["image 3", "image 7"]


@pytest.mark.parametrize(
    "change",
    [
        one("annotations", 0, bbox=[14, 3, 90, 6]),  # fits neither
        one("annotations", 0, bbox=[5, 3, 9.5, 6]),  # fits both within 2 pixels
        one("annotations", 1, segmentation={"size": [11, 13], "counts": [20, 9, 114]}),
    ],
    ids=["another image", "no proof", "RLE"],
)
def test_sizes_that_nothing_proves_wrong(read, change):
    content = wrong_sizes()
    change(content)
    content["annotations"][0]["segmentation"] = []
    kept = [(x["height"], x["width"]) for x in read(content).records]
    assert kept[0] == (11, 13)  # the RLE keeps the size of its own image only
    assert (kept[1] == (11, 13)) == (content["annotations"][1]["segmentation"] == [])


# -- boxes drawn as polygons ------------------------------------------------------------------


def drawn_boxes():
    """Three eels whose polygons are their boxes, within rounding; one cat drawn by hand."""
    content = many(BOXES[:4])
    for x, (left, top, w, h) in zip(content["annotations"], BOXES):
        right, bottom = left + w, top + h
        x["segmentation"] = [[right, top, right, bottom, left, bottom, left, top, right, top]]
    content["annotations"][1]["bbox"][2] += 0.7
    content["annotations"][3].update(category_id=0, segmentation=[[20, 2, 29, 2, 29, 9]])
    return content


def test_boxes_drawn_as_polygons_are_warned_of(read):
    annotations = read(drawn_boxes())
    ((what, entries),) = found(annotations).items()
    assert "DATASETS.BOX_MASKS boxes" in what and entries == ["'eel' (3 of 3)"]
    assert annotations.report.counts == {"mask": 4}
    content = drawn_boxes()
    content["annotations"][0]["segmentation"][0][0] -= 2  # a trapezium
    assert not read(content).report.findings
    content = drawn_boxes()
    content["annotations"][0]["segmentation"][0][4:6] = BOXES[0][:2]  # a triangle
    assert not read(content).report.findings
    content = drawn_boxes()
    content["annotations"][0]["bbox"] = [9, 4, 8, 8]  # a rectangle in the upper part of its box
    assert all("rectangles" not in x for x in found(read(content)))
    content = drawn_boxes()
    content["annotations"][0]["iscrowd"] = 1
    assert all("rectangles" not in x for x in found(read(content)))


@pytest.mark.parametrize("number", [3, 4])
def test_boxes_drawn_as_polygons_in_half_of_a_class(read, number):
    content = many(BOXES)
    for x, (left, top, w, h) in zip(content["annotations"][:number], BOXES):
        right, bottom = left + w, top + h
        x["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
    assert len(read(content).report.findings) == (number > len(BOXES) / 2)


def test_boxes_drawn_as_polygons_as_boxes(read):
    content = drawn_boxes()
    content["annotations"][0].pop("bbox")
    annotations = read(content, box_masks="boxes")
    assert annotations.report.counts["mask"] == 1 and annotations.report.counts["box only"] == 3
    instances = annotations.records[1]["annotations"]
    assert ["segmentation" in x for x in instances] == [False, False, False, True]
    assert instances[0]["bbox"] == BOXES[0]
    assert list(found(annotations, "warning")) == []


# -- crowds -----------------------------------------------------------------------------------


def test_crowds_are_named(read):
    content = sound_content()
    for index in (0, 3):
        content["annotations"][index]["iscrowd"] = 1
    annotations = read(content)
    ((what, entries),) = found(annotations, "warning").items()
    assert all(word in what for word in ("CVAT", "V7", "iscrowd", "DATASETS.CROWDS objects"))
    assert entries == ["annotation 15 (image 7)", "annotation 14 (image 3)"]
    assert [x["iscrowd"] for x in annotations.records[1]["annotations"]] == [1, 0, 0]
    assert annotations.report.counts == {"mask": 2, "box only": 1}
    # Their masks stay, for the evaluation.
    assert "segmentation" in annotations.records[1]["annotations"][0]


def test_crowds_as_objects(read):
    content = sound_content()
    expected = objects(read(content))
    for x in content["annotations"][:4]:
        x["iscrowd"] = 1
    content["annotations"][4]["ignore"] = 1
    annotations = read(content, crowds="objects")
    crowd_of = {x["id"]: x["iscrowd"] for r in annotations.records for x in r["annotations"]}
    assert crowd_of == {15: 0, 11: 0, 12: 0, 14: 0, 13: 1}
    assert not annotations.report.findings and annotations.report.counts["mask"] == 4
    content["annotations"][4].pop("ignore")
    assert objects(read(content, crowds="objects")) == expected


# -- mistakes in nearly all annotations -------------------------------------------------------


def many(boxes, masks=True):
    """A file with a box [x, y, w, h] for each of these, and its diamond as mask."""
    annotations = []
    for number, (x, y, w, h) in enumerate(boxes):
        diamond = [x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]
        annotations.append(
            make_annotation(
                number + 31,
                category_id=7,
                bbox=[x, y, w, h],
                segmentation=[diamond] if masks else [],
            )
        )
    return make_content(annotations)


BOXES = [
    [9, 4, 8, 5],
    [12, 6, 17, 9],
    [6, 7, 9, 12],
    [20, 2, 9, 7],
    [16, 11, 13, 8],
    [4, 3, 25, 16],
]


def as_corners(box):
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def as_center(box):
    return [box[0] + box[2] / 2, box[1] + box[3] / 2, box[2], box[3]]


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes only"])
@pytest.mark.parametrize("convert, name", [(as_corners, "xyxy"), (as_center, "cxcywh")])
def test_boxes_in_another_format(read, convert, name, masks):
    content = many(BOXES, masks)
    expected = objects(read(content))
    for x in content["annotations"]:
        x["bbox"] = convert(x["bbox"])
    with pytest.raises(AnnotationFileError, match=rf"DATASETS.BOX_FORMAT {name}") as raised:
        read(content)
    assert ("of 6 masks" in str(raised.value)) == masks
    (finding,) = read(content, collect=True).report.findings  # nothing that only follows
    assert finding.level == "error"
    assert objects(read(content, box_format=name)) == expected
    if masks:
        assert "BOXES_FROM_MASKS" in str(raised.value)
        assert objects(read(content, boxes_from_masks=True)) == expected


def test_corners_below_zero_are_no_sides(read):
    content = many(BOXES)
    for x in content["annotations"]:
        x["bbox"] = as_corners(x["bbox"])
    content["annotations"].append(make_annotation(37, bbox=[-9, -8, -4, -3], segmentation=[]))
    findings = found(read(content, box_format="xyxy"))
    assert findings == {"box outside of its image, left out": ["annotation 37 (image 7)"]}


@pytest.mark.parametrize("convert", [float, str])
def test_sides_just_below_zero_are_rounding_errors(read, convert):
    content = sound_content()
    content["annotations"][4]["bbox"] = list(map(convert, [5, 4, -0.5, 5]))
    warnings = found(read(content), "warning")
    assert warnings == {"box without area, left out": ["annotation 13 (image 3)"]}


@pytest.mark.parametrize("x", [-100_001, 100_001, "-100001", "100001"])
def test_coordinates_beyond_all_images(read, x):
    content = sound_content()
    content["annotations"][4]["bbox"] = [x, 2, 9, 20]
    with pytest.raises(AnnotationFileError, match="annotation 13 .*100000"):
        read(content)


def test_images_are_in_the_order_of_their_numbers(read):
    content = sound_content()
    content["images"][0]["id"] = 10
    for x in content["annotations"]:
        x["image_id"] = {7: 10, 3: 3}[x["image_id"]]
    assert [x["image_id"] for x in read(content).records] == [3, 10]


def test_dots_stand_for_examples_that_are_left_out():
    report = ReadingReport("x.json")
    for number in range(1, 6):
        report.warn("odd", f"image {number}")
    assert report.findings[0].examples() == "image 1, 2, 3, 4, 5"
    report.warn("odd", "image 6")
    assert report.findings[0].examples() == "image 1, 2, 3, 4, 5, ..."


def test_ids_that_mean_the_same_number():
    ids = Ids()
    for index, value in enumerate(["07", "7", "8"]):
        ids.add(value, index)
    assert [ids.find(x) for x in ("07", "7", 7, 7.0, "007", 8)] == [0, 1, None, None, None, 2]


def test_a_format_that_is_set_and_wrong(read):
    with pytest.raises(AnnotationFileError, match="DATASETS.BOX_FORMAT xywh"):
        read(many(BOXES), box_format="xyxy")
    assert not read(many(BOXES[:2])).report.findings  # two prove nothing


def test_boxes_from_masks(read):
    """Around all polygons; annotations without a mask keep their box."""
    content = sound_content()
    parts = [[12, 2, 20, 2, 20, 6], [3, 5, 9, 5, 9, 11]]
    content["annotations"][0].update(bbox=[0, 0, 5, 5], segmentation=parts)
    first, second = read(content, boxes_from_masks=True).records
    assert [x["bbox"] for x in second["annotations"]] == [[3, 2, 17, 9], [5, 4, 8, 5], [3, 3, 6, 6]]
    assert [x["bbox"] for x in first["annotations"]] == [[5, 4, 8, 5], [1, 2, 9.5, 20]]


def test_a_few_wrong_boxes_are_warnings(read):
    content = many(BOXES)
    content["annotations"][1]["segmentation"] = []
    content["annotations"][3]["bbox"] = [21, 11, 8, 8]
    annotations = read(content)
    assert found(annotations) == {"mask that does not fit its box": ["annotation 34 (image 7)"]}
    assert len(annotations.records[1]["annotations"]) == 6


def test_half_of_the_boxes_wrong_are_warnings(read):
    content = many(BOXES)
    for x in content["annotations"][:3]:
        x["bbox"] = [1, 14, 3, 4]
    assert [len(x) for x in found(read(content)).values()] == [3, 2]  # and two of them repeated


@pytest.mark.parametrize(
    "box, number",
    [([4, 3, 21, 16], 0), ([4, 3, 20, 16], 1), ([4, 6, 25, 13], 0), ([4, 7, 25, 12], 1)],
)
def test_masks_may_differ_from_boxes_by_a_share_of_the_side(read, box, number):
    """In x by more pixels than in y, if the box is wide."""
    content = many(BOXES)
    content["annotations"][5]["bbox"] = box
    assert len(read(content).report.findings) == number


def test_masks_that_fit_nothing(read):
    content = many(BOXES)
    for x, other in zip(content["annotations"], BOXES[3:] + BOXES[:3]):
        x["bbox"] = [other[1] % 7, 1, 4, 3]
    with pytest.raises(AnnotationFileError, match="6 of 6 masks do not fit.*BOXES_FROM_MASKS"):
        read(content)
    assert not read(content, boxes_from_masks=True).report.findings


@pytest.mark.parametrize("what", ["boxes", "masks"])
def test_normalized_coordinates(read, what):
    content = many(BOXES, masks=what == "masks")
    for x in content["annotations"]:
        x["bbox"] = [x["bbox"][i] / [WIDTH, HEIGHT][i % 2] for i in range(4)]
        x["segmentation"] = [
            [v / [WIDTH, HEIGHT][i % 2] for i, v in enumerate(p)] for p in x["segmentation"]
        ]
    with pytest.raises(AnnotationFileError, match="6 of 6 .*between 0 and 1"):
        read(content)
    if what == "masks":
        for x, box in zip(content["annotations"], BOXES):
            x["bbox"] = box
        with pytest.raises(AnnotationFileError, match="the masks of 6 of 6 .*between 0 and 1"):
            read(content)


def test_masks_of_an_image_of_another_size(read):
    content = many(BOXES)
    for x in content["annotations"]:
        x["segmentation"] = [[v * 40 + 50 for v in p] for p in x["segmentation"]]
    with pytest.raises(AnnotationFileError, match="6 of 6 masks cover no pixel"):
        read(content)


def test_boxes_in_fractions_beside_masks_in_pixels(read):
    content = many(BOXES)
    for x in content["annotations"]:
        x["bbox"] = [x["bbox"][i] / [WIDTH, HEIGHT][i % 2] for i in range(4)]
    with pytest.raises(AnnotationFileError, match="6 of 6 .*BOXES_FROM_MASKS"):
        read(content)
    assert not read(content, boxes_from_masks=True).report.findings


def test_boxes_of_another_image(read):
    content = many(BOXES, masks=False)
    for x in content["annotations"][1:]:
        x["bbox"][0] += 40
    with pytest.raises(AnnotationFileError, match=r"5 of 6 boxes \(x, y, width, height\)"):
        read(content)
    (finding,) = read(content, collect=True).report.findings
    assert finding.level == "error"


@pytest.mark.parametrize("number", [2, 3])
def test_boxes_drawn_as_two_points(read, number):
    """Some converters write the diagonal of a box: no mistake in the size of images."""
    content = many(BOXES)
    for x in content["annotations"]:
        left, top, w, h = x["bbox"]
        x["segmentation"] = [[left, top, left + w, top + h]]
        x["segmentation"] *= number  # also more than one
    annotations = read(content)
    ((what, entries),) = found(annotations).items()
    assert "three points" in what and len(entries) == 6
    assert annotations.report.counts == {"box only": 6}


def test_all_boxes_without_area_beside_masks(read):
    content = many(BOXES)
    expected = objects(read(content))
    for x in content["annotations"]:
        x["bbox"][2:] = [0, 0]
    annotations = read(content)
    assert objects(annotations) == expected and not found(annotations, "error")


@pytest.mark.parametrize("box", ["x", [1, 2, 3], [1, 2, 3, 4, 90.0]])
def test_faulty_boxes_beside_masks(read, box):
    content = many(BOXES)
    expected = objects(read(content))
    content["annotations"][2]["bbox"] = box
    with pytest.raises(AnnotationFileError, match="annotation 33 .*BOXES_FROM_MASKS"):
        read(content)
    assert objects(read(content, boxes_from_masks=True)) == expected


def test_one_tiny_box_is_none_of_these(read):
    content = many(BOXES)
    content["annotations"][0].update(bbox=[0.2, 0.3, 0.4, 0.5], segmentation=[])
    assert not read(content).report.findings


# -- warnings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"segmentation": [SQUARE, [4.0, 4, 7, 4, 7, 7]], "bbox": [3, 3, 6, 6]}, "hole"),
        (
            {"bbox": [8, 9, 9, 4], "segmentation": [], "attributes": {"rotation": 37.5}},
            "attributes.rotation",
        ),
        ({"bbox": [8, 9, 9, 4], "segmentation": [[8.0, 9.0, 17.0, 13.0]]}, "three points"),
        ({"category_id": 0, "segmentation": [TRIANGLE, [40.0, 2, 50, 2, 50, 9]]}, "left out"),
        ({"bbox": [-4, 2, 16, 8], "segmentation": []}, "partly outside"),
        ({"bbox": [3, 3, 0, 5], "segmentation": []}, "box without area, left out"),
        ({"bbox": [90, 3, 10, 5], "segmentation": []}, "box outside of its image, left out"),
        ({"bbox": None, "segmentation": []}, "neither box nor usable mask, left out"),
        ({"bbox": [5, 4, 8, 5], "category_id": 0, "segmentation": []}, "same class and box"),
        ({"bbox": [5, 4, 8 - 1e-14, 5], "category_id": 0, "segmentation": []}, "same class"),
    ],
)
def test_warned_of(read, changes, what):
    content = sound_content()
    content["annotations"].append(make_annotation(99, **changes))
    annotations = read(content)
    ((text, entries),) = found(annotations).items()
    assert what in text and entries == ["annotation 99 (image 7)"]
    left = [x["id"] for x in annotations.records[1]["annotations"]]
    assert left == [15, 11, 12] + [99] * (not text.endswith("left out") or "polygon" in text)


def test_boxes_of_one_size_are_no_doubles(read):
    content = sound_content()
    content["annotations"] += [
        make_annotation(99, category_id=0, bbox=[6, 4, 8, 5], segmentation=[]),
        make_annotation(98, category_id=7, bbox=[5, 4, 8, 5], segmentation=[]),
    ]
    assert not read(content).report.findings


@pytest.mark.parametrize("rotation", [0, 0.0, 360, None, "0"])
def test_boxes_that_are_not_rotated(read, rotation):
    content = sound_content()
    content["annotations"][4]["attributes"] = {"rotation": rotation}
    assert not read(content).report.findings


@pytest.mark.parametrize("is_upright", [False, True])
def test_thin_objects_keep_their_outline_for_the_evaluation(read, is_upright):
    line, box = [2.0, 5.0, 14.0, 5.0, 14.0, 5.2, 2.0, 5.2], [2, 5, 12, 0.2]
    if is_upright:
        line = [line[i ^ 1] for i in range(8)]
        box = [box[i ^ 1] for i in range(4)]
    content = sound_content()
    content["annotations"].append(make_annotation(99, bbox=box, segmentation=[line]))
    thin = read(content).records[1]["annotations"][-1]
    assert thin["thin_segmentation"] == [line] and "segmentation" not in thin


# -- errors -----------------------------------------------------------------------------------


def test_all_errors_at_once_and_none_that_only_follows(read):
    content = sound_content()
    content["images"][1]["height"] = "high"
    content["annotations"][0]["segmentation"] = "??"
    content["annotations"][1]["category_id"] = 41
    content["categories"][2]["id"] = 7.5
    annotations = read(content, collect=True)
    errors = found(annotations, "error")
    # Neither the annotations of the faulty image nor those of the faulty category.
    assert {k[:14]: v for k, v in errors.items()} == {
        "'height' must ": ["image 3, got 'high'"],
        "a category has": ["got {'id': 7.5, 'name': 'eel'}"],
        "its segmentati": ["annotation 15 (image 7), got '??'"],
    }
    content["images"][1]["height"] = OTHER_HEIGHT
    content["categories"][2]["id"] = 7
    ((what, entries),) = [
        x for x in found(read(content, collect=True), "error").items() if "category_id" in x[0]
    ]
    assert "0, 7, 40" in what and entries == ["annotation 11 (image 7), got 41"]


def test_categories_are_named_where_they_are_at_fault(read):
    content = sound_content()
    content["categories"][2]["id"] = 40
    with pytest.raises(AnnotationFileError, match=r"40 \('dog', 'eel'\): categories"):
        read(content)
    content["categories"] = []
    assert len(read(content, collect=True).report.findings) == 1  # none for each annotation


def test_an_image_entry_without_anything_is_one_error(read):
    content = sound_content()
    content["images"].append({})
    ((what, entries),) = found(read(content, collect=True), "error").items()
    assert "'id'" in what and len(entries) == 1


def test_the_first_error_names_file_entry_and_value(read, tmp_path):
    content = sound_content()
    content["annotations"][2]["segmentation"] = [[3, 4, "five", 6, 7, 8]]
    with pytest.raises(AnnotationFileError) as raised:
        read(content)
    text = str(raised.value)
    assert text.startswith(f"{tmp_path / 'file.json'}: annotation 12 (image 7)") and "five" in text


def test_the_log_has_counts_and_findings(read, caplog):
    content = sound_content()
    content["annotations"][0]["segmentation"] = TRIANGLE
    with caplog.at_level("INFO", logger="contrastmask"):
        for _ in range(2):
            log_reading(read(content))
    (text,) = [x for x in caplog.messages if x.startswith("Read 2 images and 3 classes")]
    assert "| mask " in text and "annotation 15 (image 7)" in text


def test_images_in_subfolders(read, folder):
    content = sound_content()
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "a.png").rename(folder / "deep" / "er" / "c.png")
    content["images"][1]["file_name"] = "deep/er/c.png"
    annotations = read(content)
    assert annotations.records[0]["file_name"] == str(folder / "deep" / "er" / "c.png")
    assert not annotations.report.findings


def test_a_missing_image_that_nobody_needs_is_not_called_found(tmp_path, folder):
    (folder / next(iter(IMAGE_SIZES))).unlink()
    path = tmp_path / "file.json"
    path.write_text(json.dumps(sound_content()))
    findings = read_annotations(str(path), str(folder), needs_images=False).report.findings
    assert [(x.what, len(x.where)) for x in findings] == [("missing image file", 1)]


@pytest.mark.parametrize("is_enabled", [True, False])
def test_garbage_collection_is_as_before(folder, tmp_path, is_enabled):
    path = tmp_path / "broken.json"
    path.write_text('{"images": [')
    try:
        (gc.enable if is_enabled else gc.disable)()
        with pytest.raises(AnnotationFileError):
            read_annotations(str(path), str(folder))
        assert gc.isenabled() == is_enabled
    finally:
        gc.enable()
