"""What broken and odd input gives: the right result, or an error that names what is wrong."""

import pickle
import struct
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from annotation_samples import HEIGHT, SQUARE, TRIANGLE, WIDTH, make_annotation, make_rle
from given import LEFT, RIGHT, AnnotationFile, ImageFile, Place, Row, Training, Weights
from PIL import Image

from contrastmask.data import class_split_from_config
from contrastmask.data.inspection import inspect_annotation_file
from contrastmask.data.shapes import ShapesParams, write_shapes

REMOVED = object()
NO_PIXEL = "segmentation without a pixel of its image: box only"
NO_POLYGON = "segmentation without three points: box only"
NO_AREA, OUTSIDE = "box without area, left out", "box outside of its image, left out"

# ---------------------------------------------------------------------------------------------
# What is given
# ---------------------------------------------------------------------------------------------


def changed(*path_and_value):
    """An annotation file with another value at a place such as ("images", 0, "id")."""
    *parents, last, value = path_and_value

    def change(content):
        for key in parents:
            content = content[key]
        if value is REMOVED:
            del content[last]
        else:
            content[last] = value

    return AnnotationFile(change)


def second(key, value):
    return changed("annotations", 1, key, value)


def second_box(box):
    """The second annotation has this box and no mask."""
    return AnnotationFile(lambda x: x["annotations"][1].update(bbox=box, segmentation=[]))


def _use_cat(content):
    content["annotations"][0]["category_id"] = 0


def only(**changes):
    """An annotation file with one annotation, with id 5."""
    return changed("annotations", [make_annotation(5, **changes)])


def runs(counts, size=(HEIGHT, WIDTH)):
    return {"size": list(size), "counts": counts}


def dogs_have_id(category_id):
    def change(content):
        content["categories"][0]["id"] = category_id
        for x in content["annotations"]:
            x["category_id"] = category_id

    return AnnotationFile(change)


def renamed_image(name):
    def change(content):
        content["images"][1]["file_name"] = name

    return AnnotationFile(change)


def zigzag(num_points, height):
    """A band across the image, with `num_points` in its upper edge."""
    x = np.linspace(0, WIDTH, num_points - 2)
    y = 5 + height * (np.arange(num_points - 2) % 2)
    upper = np.stack([x, y], axis=1)
    return [np.concatenate([upper, [[WIDTH, 15], [0, 15]]]).ravel().round(4).tolist()]


def with_exif(orientation, turn):
    def write(image, path):
        exif = image.getexif()
        exif[0x0112] = orientation
        image.transpose(turn).save(path, exif=exif)

    return write


def converted(mode, **params):
    return lambda image, path: image.convert(mode).save(path, **params)


def black_and_white(image, path):
    image.convert("L").point(lambda level: 255 * (level > 60)).convert("1").save(path)


def levels(dtype, highest):
    values = np.linspace(0, highest, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(dtype)
    return lambda image, path: Image.fromarray(values).save(path)


def saved(change):
    """The image file after a change to its bytes."""

    def write(image, path):
        image.save(path)
        with open(path, "rb") as f:
            content = f.read()
        with open(path, "wb") as f:
            f.write(change(content))

    return write


def png_of_size(width, height):
    """A PNG that says it has this size, without pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return saved(lambda content: content[:8] + header + data)


def yaml_in(section, text):
    return "".join(f"{'  ' * i}{name}:\n" for i, name in enumerate(section)) + (
        "  " * len(section) + text + "\n"
    )


def contrastive(text):
    return Training(config=yaml_in(["MODEL", "ROI_CONTRASTIVE_HEAD"], text))


def base(*names, overrides=(), **more):
    return Training(["DATASETS.BASE_CLASSES", str(list(names)), *overrides], **more)


def without_masks(content):
    for x in content["annotations"]:
        x.pop("segmentation", None)


def torch_file(path, **options):
    torch.save({"model": {"weight": torch.rand(2000, 3)}}, path, **options)


def cut(fraction, **options):
    def write(path):
        torch_file(path, **options)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * fraction)])

    return write


def overwritten(path):
    torch_file(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"data.pkl") + 8
    content[start : start + 32] = bytes(32)
    path.write_bytes(content)


# ---------------------------------------------------------------------------------------------
# What it gives
# ---------------------------------------------------------------------------------------------


def has(**values):
    """The first annotation of image 7 has these values."""

    def check(loaded):
        assert {key: loaded.annotation().get(key) for key in values} == values

    return check


def named(what, number, num_left=2):
    """An annotation is named in a warning, and so many are left in image 7."""

    def check(loaded):
        (text,) = [x for x in loaded.found if x.startswith(what)]
        assert loaded.found[text] == [str(number)]
        assert len(loaded.records[7]["annotations"]) == num_left

    return check


def repaired(what, then=lambda loaded: None, number="2"):
    """An annotation is understood and counted."""

    def check(loaded):
        (text,) = [x for x in loaded.found if what in x]
        assert loaded.found[text][-1] == number
        assert len(loaded.records[7]["annotations"]) == (1 if number == "5" else 2)
        then(loaded)

    return check


def box_only(loaded, why=NO_PIXEL):
    assert loaded.found == {why: ["5"]}
    assert "segmentation" not in loaded.annotation()
    assert loaded.instances().gt_has_mask.tolist() == [False]


def no_segmentation(loaded):
    assert set(loaded.counts) == {"box only"} and not loaded.found
    assert not loaded.instances().gt_has_mask.any()


def mask_area(low, high):
    def check(loaded):
        instances = loaded.instances()
        assert instances.gt_has_mask.tolist() == [True]
        assert low <= int(instances.gt_masks.tensor.sum()) <= high

    return check


def box(*expected):
    def check(loaded):
        assert loaded.instances().gt_boxes.tensor[0].tolist() == list(expected)

    return check


def sound(loaded):
    assert [x["id"] for x in loaded.records[7]["annotations"]] in ([1, 2], [1, 1.5])
    assert [x["bbox"][:2] for x in loaded.records[7]["annotations"]] == [[2, 2]] * 2
    assert loaded.instances().gt_has_mask.tolist() == [True, True]


def colors(left=LEFT, right=RIGHT, tolerance=0):
    def check(got):
        for ours, expected in zip(got, (left, right)):
            assert np.abs(ours.astype(int) - expected).max() <= tolerance

    return check


def base_names(*names):
    def check(cfg):
        assert set(class_split_from_config(cfg).base_names) == set(names)

    return check


def weights_of(value):
    def check(model):
        assert (model.weight == value).all()

    return check


GREY_LEFT, GREY_RIGHT = (124, 124, 124), (18, 18, 18)

# ---------------------------------------------------------------------------------------------
# The table. An error begins with the file, or names the key; the rest of it is given here.
# ---------------------------------------------------------------------------------------------

TABLE = {
    # Annotation files: as files
    "JSON: empty file": Row(AnnotationFile(""), "is not JSON, or was cut off"),
    "JSON: cut off in a list": Row(AnnotationFile("[1"), "is not JSON, or was cut off"),
    "JSON: cut off": Row(AnnotationFile('{"images": ['), "is not JSON, or was cut off"),
    "JSON: a zero byte": Row(AnnotationFile("\x00"), "is not JSON"),
    "JSON: 100,000 levels": Row(AnnotationFile("[" * 100_000), "is not JSON"),
    "JSON: UTF-16": Row(AnnotationFile("{}".encode("utf-16")), "'images' is missing"),
    "JSON: Latin-1": Row(AnnotationFile('{"é": 1}'.encode("latin-1")), "is not JSON"),
    "JSON: number of 5000 digits": Row(AnnotationFile('{"a": ' + "1" * 5000 + "}"), "is not JSON"),
    "JSON: a list": Row(AnnotationFile("[]"), "is not a JSON object"),
    "JSON: byte order mark": Row(
        AnnotationFile(b"\xef\xbb\xbf{}"), "'images' is missing; is this a COCO instances file?"
    ),
    "JSON: NaN where nobody looks": Row(changed("info", float("nan")), sound),
    "no images key": Row(changed("images", REMOVED), "'images' is missing"),
    "annotations an object": Row(changed("annotations", {}), "'annotations' is not a list"),
    "annotation a number": Row(changed("annotations", 1, 5), "entry 1 of 'annotations'"),
    "no annotations": Row(changed("annotations", []), lambda x: x.records[7]["annotations"] == []),
    # Categories
    "no categories": Row(changed("categories", []), "'categories' is empty"),
    "category id 0": Row(only(category_id=0), has(category_id=0)),
    "category id negative": Row(dogs_have_id(-1), has(category_id=0)),
    "category id of 200 bits": Row(dogs_have_id(2**200), has(category_id=2)),
    "category without id": Row(
        changed("categories", 0, "id", REMOVED), "a category has no whole number as 'id'"
    ),
    "category id is text": Row(changed("categories", 0, "id", "40"), sound),
    "category id 40.0": Row(changed("categories", 0, "id", 40.0), sound),
    "category without name": Row(
        changed("categories", 0, "name", REMOVED), "category 40: it has no 'name'"
    ),
    "category name is half a character": Row(
        changed("categories", 0, "name", "\ud800"), "category 40: its 'name' is not Unicode text"
    ),
    "category ids double": Row(
        changed("categories", 0, "id", 0), "0 .'dog', 'cat'.: categories of different names have"
    ),
    "category names double": Row(
        AnnotationFile(lambda x: (x["categories"][0].update(name="cat"), _use_cat(x))),
        "'cat': several categories have this name",
    ),
    # Images in the annotation file
    "no images": Row(changed("images", []), "'images' is empty"),
    "image without id": Row(changed("images", 0, "id", REMOVED), "an image has no number"),
    "image id null": Row(changed("images", 0, "id", None), "an image has no number"),
    "image id 7.0": Row(changed("images", 0, "id", 7.0), sound),
    "image ids double": Row(changed("images", 0, "id", 3), "image 3: two images have this id"),
    "image ids mixed": Row(changed("images", 1, "id", "x"), sound),
    "no file name": Row(
        changed("images", 0, "file_name", REMOVED), "image 7: it has no 'file_name'"
    ),
    "file name is half a character": Row(
        changed("images", 0, "file_name", "\udcff"), "image 7: its 'file_name' is not Unicode"
    ),
    "spaces and é in the file name": Row(
        AnnotationFile(lambda x: None), lambda x: x.records[7]["file_name"].endswith("/b é.png")
    ),
    "missing image file": Row(
        renamed_image("none.png"), r"1 of 2 images are not in the folder '.*images', such as none"
    ),
    "height is text": Row(changed("images", 0, "height", "20"), sound),
    "height 20.0": Row(changed("images", 0, "height", 20.0), sound),
    "width 0": Row(
        changed("images", 0, "width", 0), repaired("taken from the image file", sound, "7")
    ),
    "width negative": Row(changed("images", 0, "width", -30), "image 7: 'width'.*got -30"),
    "image of 10 billion pixels": Row(
        AnnotationFile(lambda x: x["images"][0].update(height=100_000, width=100_000)),
        "image 7: it has more than 4294967295 pixels",
    ),
    # Annotations
    "no annotation id": Row(changed("annotations", 0, "id", REMOVED), sound),
    "annotation id 1.5": Row(second("id", 1.5), sound),
    "annotation ids double": Row(second("id", 1), sound),
    "annotation id 10**30": Row(
        second("id", 10**30), lambda x: x.records[7]["annotations"][1]["id"] == 10**30
    ),
    "no image_id": Row(second("image_id", REMOVED), "annotation 2 .*'image_id' is missing"),
    "unknown image": Row(second("image_id", 99), r"annotation 2 \(image 99\): 'images' has no"),
    "image_id is text": Row(second("image_id", "7"), repaired("'image_id' as text", sound)),
    "image_id a list": Row(second("image_id", [7]), r"annotation 2 \(image \[7\]\): 'images' has"),
    "unknown category": Row(second("category_id", 41), "annotation 2 .*category_id .*; got 41"),
    "category_id is text": Row(
        second("category_id", "40"), repaired("'category_id' as text", sound)
    ),
    "category_id true": Row(second("category_id", True), "annotation 2 .*category_id .*; got True"),
    "iscrowd is text": Row(second("iscrowd", "0"), repaired("'iscrowd'", sound)),
    "iscrowd 2": Row(second("iscrowd", 2), "annotation 2 .*'iscrowd' must be 0 or 1; got 2"),
    "iscrowd true, with polygons": Row(second("iscrowd", True), named("crowd (iscrowd 1)", 2)),
    "iscrowd null": Row(second("iscrowd", None), sound),
    "ignore is text": Row(second("ignore", "no"), "annotation 2 .*'ignore' must be 0 or 1"),
    "marked ignore": Row(
        second("ignore", 1), lambda x: [a["iscrowd"] for a in x.records[7]["annotations"]] == [0, 1]
    ),
    "area is text": Row(second("area", "80"), repaired("'area'", sound)),
    "area NaN": Row(second("area", float("nan")), repaired("'area'", sound)),
    "area 10**400": Row(second("area", 10**400), "annotation 2 .*'area' must be a number"),
    "area null": Row(second("area", None), sound),
    # Boxes
    "no bbox": Row(second("bbox", REMOVED), repaired("taken from the mask", sound)),
    "bbox null": Row(second("bbox", None), repaired("taken from the mask", sound)),
    "bbox of 3 values": Row(second("bbox", [1, 2, 3]), "annotation 2 .*4 numbers"),
    "bbox an object": Row(second("bbox", {"x": 1}), "annotation 2 .*4 numbers"),
    "bbox with text": Row(
        second("bbox", ["2", "2", 10.0, "8"]), repaired("numbers as text", sound)
    ),
    "bbox with true": Row(only(bbox=[1, 2, 3, True], segmentation=[]), box(1, 2, 4, 3)),
    "bbox with null": Row(second("bbox", [1, 2, 3, None]), repaired("box missing", sound)),
    "bbox with NaN": Row(second("bbox", [1, float("nan"), 3, 4]), sound),
    "bbox infinite": Row(second("bbox", [1, 2, float("inf"), 4]), "annotation 2 .*inf"),
    "bbox of 10**400": Row(second("bbox", [1, 2, 10**400, 4]), "annotation 2 .*4 numbers"),
    "bbox width 0": Row(second_box([3, 3, 0, 5]), named(NO_AREA, 2, 1)),
    "bbox width negative": Row(
        only(bbox=[9, 3, -5, 5], segmentation=[]),
        repaired("right or bottom side", box(4, 3, 9, 8), "5"),
    ),
    "bbox of a thousandth": Row(second_box([9, 3, 0.001, 5]), named(OUTSIDE, 2, 1)),
    "bbox outside": Row(second_box([30, 3, 5, 5]), named(OUTSIDE, 2, 1)),
    "bbox left of 0": Row(second_box([-10, 3, 5, 5]), named(OUTSIDE, 2, 1)),
    "bbox partly outside": Row(only(bbox=[-5, -5, 10, 10], segmentation=[]), box(0, 0, 5, 5)),
    # Polygons
    "no segmentation": Row(AnnotationFile(without_masks), no_segmentation),
    "segmentation null": Row(only(segmentation=None), no_segmentation),
    "segmentation empty": Row(only(segmentation=[]), no_segmentation),
    "segmentation an empty object": Row(only(segmentation={}), no_segmentation),
    "segmentation text": Row(
        second("segmentation", "x"), "annotation 2 .*segmentation is text; got 'x'"
    ),
    "segmentation true": Row(
        second("segmentation", True), "annotation 2 .*segmentation is of type bool"
    ),
    "flat polygon": Row(second("segmentation", TRIANGLE), repaired("flat list", sound)),
    "polygon with null": Row(
        second("segmentation", [[None, *TRIANGLE[1:]]]),
        "annotation 2 .*numbers of pixels; got 'null'",
    ),
    "polygon with NaN": Row(
        second("segmentation", [[1.0, float("nan")] * 3]), "annotation 2 .*no pixels.*nan"
    ),
    "polygon far away": Row(
        second("segmentation", [[1e7] * 6]), "annotation 2 .*beyond.*10000000.0"
    ),
    "polygon without points": Row(only(segmentation=[[]]), no_segmentation),
    "polygon of two points": Row(
        only(segmentation=[[1.0, 2.0, 3.0, 4.0]]), partial(box_only, why=NO_POLYGON)
    ),
    "polygon of 7 values": Row(
        second("segmentation", [[1.0, 2.0, 9, 2, 9, 8, 5]]), "annotation 2 .*odd number"
    ),
    "polygon on a line": Row(only(segmentation=[[2.0, 2.0, 9, 9, 5, 5]]), box_only),
    "polygon outside": Row(only(segmentation=[[40.0, 2, 50, 2, 50, 9]]), box_only),
    "polygon partly outside": Row(
        only(segmentation=[[-10.0, 0, 10, 0, 10, 10, -10, 10]]), mask_area(100, 100)
    ),
    "polygon that crosses itself": Row(
        only(segmentation=[[2.0, 2, 12, 12, 12, 2, 2, 12]]), mask_area(45, 60)
    ),
    "polygon twice around, which cancels": Row(only(segmentation=[SQUARE * 2]), box_only),
    "bad polygons beside good ones": Row(
        only(segmentation=[[1.0, 1.0], TRIANGLE, [], [40.0, 2, 50, 2, 50, 9], SQUARE]),
        has(segmentation=[TRIANGLE, SQUARE]),
    ),
    "bad polygons beside good ones, counted": Row(
        only(segmentation=[[1.0, 1.0], TRIANGLE]), named("polygon without three points", 5, 1)
    ),
    "polygon of a million points": Row(
        only(segmentation=zigzag(1_000_000, 0.05)), mask_area(295, 305)
    ),
    "polygon of a million points, long": Row(
        only(segmentation=zigzag(1_000_000, 90_000)), "annotation 5 .*outline .* is too long"
    ),
    # RLE
    "RLE without foreground": Row(only(segmentation=make_rle(True, empty=True)), no_segmentation),
    "RLE without foreground, runs": Row(
        only(segmentation=make_rle(False, empty=True)), no_segmentation
    ),
    "RLE without runs": Row(only(segmentation=runs([])), no_segmentation),
    "RLE with empty runs": Row(only(segmentation=runs([0, 0, 100, 40, 460])), mask_area(40, 40)),
    "RLE size as floats": Row(
        only(segmentation=runs(make_rle(False)["counts"], (20.0, 30.0))), mask_area(40, 40)
    ),
    "RLE of another size": Row(
        second("segmentation", make_rle(True, 30, 20)),
        r"annotation 2 .*size .* of its RLE.* image, \[20, 30\]; got \[30, 20\]",
    ),
    "RLE without size": Row(
        only(segmentation={"counts": make_rle(False)["counts"]}),
        repaired("RLE without size", mask_area(40, 40), "5"),
    ),
    "RLE counts a number": Row(
        second("segmentation", runs(600)), "annotation 2 .*counts of its RLE are of type int"
    ),
    "RLE too long": Row(second("segmentation", runs([300, 301])), "annotation 2 .*do not add up"),
    "RLE too short": Row(second("segmentation", runs([300, 299])), "annotation 2 .*do not add up"),
    "RLE negative": Row(second("segmentation", runs([-5, 605])), "annotation 2 .*do not add up"),
    "RLE overflow": Row(
        second("segmentation", runs([2**62] * 4 + [600])), "annotation 2 .*do not add up"
    ),
    "RLE of floats": Row(second("segmentation", runs([300.0, 300])), repaired("as floats")),
    "RLE of text": Row(second("segmentation", runs(["600"])), repaired("as text")),
    "RLE of lists": Row(second("segmentation", runs([[1], [2, 3]])), "annotation 2 .*not whole"),
    "RLE of 10**30": Row(second("segmentation", runs([10**30])), "annotation 2 .*not whole"),
    "RLE cut off": Row(second("segmentation", runs("dP")), "annotation 2 .*damaged"),
    "RLE not ASCII": Row(second("segmentation", runs("é0")), "annotation 2 .*damaged"),
    # Image files
    "image: spaces and é in its name": Row(ImageFile("ä b%20.png", Image.Image.save), colors()),
    "image: grey": Row(ImageFile("a.png", converted("L")), colors(GREY_LEFT, GREY_RIGHT)),
    "image: black and white": Row(
        ImageFile("a.png", black_and_white), colors((255,) * 3, (0,) * 3)
    ),
    "image: palette": Row(
        ImageFile("a.png", lambda i, p: i.quantize(4).save(p)), colors(tolerance=2)
    ),
    "image: transparent": Row(
        ImageFile("a.png", lambda i, p: (i.putalpha(0), i.save(p))), colors()
    ),
    "image: CMYK": Row(ImageFile("a.jpg", converted("CMYK", quality=100)), colors(tolerance=3)),
    "image: animated": Row(
        ImageFile("a.gif", lambda i, p: i.save(p, save_all=True, append_images=[i.rotate(180)])),
        colors(tolerance=2),
    ),
    "image: not what its name says": Row(
        ImageFile("a.jpg", lambda i, p: i.save(p, format="PNG")), colors()
    ),
    "image: EXIF 6": Row(ImageFile("a.png", with_exif(6, Image.Transpose.ROTATE_90)), colors()),
    "image: EXIF 3": Row(ImageFile("a.png", with_exif(3, Image.Transpose.ROTATE_180)), colors()),
    "image: EXIF, size before turning": Row(
        ImageFile("a.png", with_exif(6, Image.Transpose.ROTATE_180)),
        r"got \(20, 30\), expect \(30, 20\).*EXIF",
    ),
    "image: EXIF damaged": Row(
        ImageFile("a.png", lambda i, p: i.save(p, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")),
        colors(),
    ),
    "image: 16 bits, grey": Row(
        ImageFile("a.png", levels(np.uint16, 65535)), "more than 8 bits.*INPUT.GRAY_RANGE"
    ),
    "image: 32 bits, grey": Row(
        ImageFile("a.tif", levels(np.int32, 70000)), "more than 8 bits.*INPUT.GRAY_RANGE"
    ),
    "image: floats": Row(
        ImageFile("a.tif", levels(np.float32, 1)), "more than 8 bits.*INPUT.GRAY_RANGE"
    ),
    "image: another size": Row(
        ImageFile("a.png", lambda i, p: i.resize((31, 20)).save(p)), r"got \(31, 20\), expect"
    ),
    "image: size 0": Row(ImageFile("a.png", png_of_size(0, 20)), "cannot identify"),
    "image: 3.6 billion pixels": Row(
        ImageFile("a.png", png_of_size(60_000, 60_000)), "INPUT.MAX_IMAGE_PIXELS"
    ),
    "image: without pixels": Row(ImageFile("a.png", png_of_size(30, 20)), "truncated|incomplete"),
    "image: truncated JPEG": Row(
        ImageFile("a.jpg", saved(lambda x: x[: len(x) * 2 // 3])), "[Tt]runcated"
    ),
    "image: truncated PNG": Row(
        ImageFile("a.png", saved(lambda x: x[: len(x) // 2])), "[Tt]runcated|incomplete"
    ),
    "image: empty file": Row(ImageFile("a.png", saved(lambda x: b"")), "cannot identify"),
    "image: text": Row(ImageFile("a.png", saved(lambda x: b"hello")), "cannot identify"),
    "image: missing": Row(ImageFile("a.png", lambda i, p: None), "No such file"),
    # Config files and overrides
    "config: empty": Row(Training(config=""), "own.yaml: it has to hold keys with values"),
    "config: a list": Row(Training(config="[1]"), "own.yaml: it has to hold keys with values"),
    "config: not YAML": Row(Training(config="A: [1,\nB: {"), r"(?s)own.yaml: .*line 2"),
    "config: runs code": Row(
        Training(config="SEED: !!python/object/apply:os.mkdir [FOLDER/ran]"),
        "(?s)own.yaml: .*python/object/apply:os.mkdir.*line 1",
    ),
    "config: base that runs code": Row(
        Training(
            config='_BASE_: "base.yaml"',
            files={"base.yaml": b"SEED: !!python/object/apply:os.mkdir [FOLDER/ran]"},
        ),
        "(?s)own.yaml: .*python/object/apply:os.mkdir.*base.yaml",
    ),
    "config: missing base": Row(Training(config='_BASE_: "no.yaml"'), "own.yaml: .*no.yaml"),
    "config: its own base": Row(
        Training(config='_BASE_: "own.yaml"'), "own.yaml: .*back to itself"
    ),
    "config: unknown key": Row(
        Training(config="MODEL:\n  ROI_CONTRASTIV_HEAD: 1"), "own.yaml: .*MODEL.ROI_CONTRASTIV_HEAD"
    ),
    "config: text for a number": Row(
        contrastive("NUM_CONV: eight"), "int.*str.*key: MODEL.ROI_CONTRASTIVE_HEAD.NUM_CONV"
    ),
    "config: number for a section": Row(Training(config="MODEL: 5"), "own.yaml: it has to hold"),
    "config: null": Row(contrastive("DELTA: null"), "ROI_CONTRASTIVE_HEAD.DELTA is None, it has"),
    "config: negative number of RoIs": Row(
        contrastive("MAX_ROIS: -1"), "MAX_ROIS is -1, it has to be at least 0"
    ),
    "config: colors with augmentation at test time": Row(
        Training(
            config="TEST: {AUG: {ENABLED: true}}\n"
            "MODEL: {ROI_MASK_HEAD: {COLOR_CRF: {AT_TEST: true}}}"
        ),
        "TEST.AUG.ENABLED and .*COLOR_CRF.AT_TEST",
    ),
    "config: NaN": Row(contrastive("DELTA: .nan"), "DELTA is nan, it has to be 0 to 0.5"),
    "config: temperature 0": Row(
        contrastive("TEMPERATURE_HARD: 0.0"), "TEMPERATURE_HARD is 0.0, it has to be at least 0.001"
    ),
    "override: text for a number": Row(
        Training(["MODEL.ROI_CONTRASTIVE_HEAD.NUM_CONV", "x"]),
        "override: .*int.*str.*key: MODEL.*NUM_CONV",
    ),
    "override: text for a list": Row(
        Training(["DATASETS.BASE_CLASSES", "voc"]),
        r"override: DATASETS.BASE_CLASSES has to be a list, .* not voc$",
    ),
    "override: half of a list": Row(
        Training(["DATASETS.BASE_CLASSES", "[cat"]),
        r"override: DATASETS.BASE_CLASSES has to be a list, .* not \[cat$",
    ),
    "override: unknown key": Row(Training(["SOLVER.LR", "1"]), "override: .*key: SOLVER.LR"),
    "override: key without value": Row(Training(["SEED", "1", "SEED"]), "override: .*odd length"),
    # Classes and datasets
    "NUM_CLASSES of other data": Row(
        Training(["MODEL.ROI_HEADS.NUM_CLASSES", "7"]),
        r"NUM_CLASSES is 7, but .*train.json.* has 14 classes. Set MODEL.ROI_HEADS.NUM_CLASSES 14",
    ),
    "unknown class": Row(base("stra"), r"BASE_CLASSES: unknown class 'stra'; did you mean 'star'"),
    "class in both lists": Row(
        Training(["DATASETS.BASE_CLASSES", "['ring']", "DATASETS.NOVEL_CLASSES", "['ring']"]),
        "ring: in both DATASETS.BASE_CLASSES and DATASETS.NOVEL_CLASSES",
    ),
    "class named twice": Row(base("ring", "ring"), "BASE_CLASSES: class 'ring' is named twice"),
    "class a number": Row(Training(["DATASETS.BASE_CLASSES", "[3]"]), "BASE_CLASSES: .*strings"),
    "no base class": Row(base(), "DATASETS.BASE_CLASSES names no class"),
    "set of another dataset": Row(base("voc"), "'voc' does not fit this dataset.* person"),
    "file of class names": Row(
        base("FOLDER/b.txt", files={"b.txt": b"\xef\xbb\xbf# base\r\nring\r\n\r\n gear \r\n"}),
        base_names("ring", "gear"),
    ),
    "file of class names: missing": Row(
        base("FOLDER/no.txt"), "BASE_CLASSES: cannot read .*no.txt': No such file"
    ),
    "file of class names: binary": Row(
        base("FOLDER/base.txt", files={"base.txt": b"\xff\xfe\x00"}),
        "BASE_CLASSES: cannot read .*base.txt': .*decode",
    ),
    "file of class names: empty": Row(
        base("FOLDER/base.txt", files={"base.txt": b"# none\n"}), "base.txt' names no class"
    ),
    "file of class names: unknown class": Row(
        base("FOLDER/base.txt", files={"base.txt": b"ring\nstra\n"}),
        r"BASE_CLASSES \(file '.*base.txt'\): unknown class 'stra'.*'star'",
    ),
    "base classes without masks": Row(
        base("star"), "No instance of a base class has a mask in .*train.json.* stands for star"
    ),
    "dataset without any mask": Row(
        base("auto", change=without_masks),
        "'auto' finds no base class, because no annotation in .*MODEL.MASK_ON False",
    ),
    "dataset without any mask, boxes only": Row(
        base("auto", change=without_masks, overrides=["MODEL.MASK_ON", "False"]), base_names()
    ),
    "no base class, boxes only": Row(base(overrides=["MODEL.MASK_ON", "False"]), base_names()),
    "dataset without annotations": Row(
        base("ring", change=lambda x: x.update(annotations=[])),
        "DATASETS.TRAIN: .*train.json.* have no instance to learn from",
    ),
    "unknown dataset": Row(
        Training(["DATASETS.TRAIN", "('NAMES',)"]), "unknown dataset '.*S'; did you mean"
    ),
    "no training dataset": Row(
        Training(["DATASETS.TRAIN", "()"]), "DATASETS.TRAIN names no dataset"
    ),
    "malformed COCO_FORMAT": Row(
        Training(["DATASETS.COCO_FORMAT", "[['NAME', 'a.json']]"]),
        r"DATASETS.COCO_FORMAT: each entry must be \[name, annotation file, image folder\], got",
    ),
    "missing annotation file": Row(
        Training(["DATASETS.COCO_FORMAT", "[['NAME', 'no/such.json', 'images']]"]),
        "no/such.json: there is no such annotation file",
    ),
    "annotation file a folder": Row(
        Training(["DATASETS.COCO_FORMAT", "[['NAME', 'FOLDER', 'images']]"]), "cannot be read: Is a"
    ),
    "missing image folder": Row(
        Training(
            ["DATASETS.COCO_FORMAT", "[['NAME', 'FOLDER/a.json', 'no/such/folder']]"],
            files={
                "a.json": b'{"images": [{"id": 1, "file_name": "a", "height": 1, "width": 1'
                b'}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}'
            },
        ),
        "a.json: the image folder '.*no/such/folder' does not exist",
    ),
    # Checkpoints
    "weights: missing": Row(Weights("no.pth", None), r"no\.pth does not exist \(see MODEL.WEIGHTS"),
    "weights: empty file": Row(Weights("a.pth", b""), r"a\.pth is damaged"),
    "weights: empty .pkl": Row(Weights("a.pkl", b""), r"a\.pkl is damaged"),
    "weights: web page": Row(
        Weights("a.pth", b"\n<!DOCTYPE html>\n<html><body>404</body></html>"), r"a\.pth is damaged"
    ),
    "weights: text": Row(Weights("a.pth", b"not a checkpoint at all"), r"a\.pth is damaged"),
    "weights: text as .pkl": Row(Weights("a.pkl", b"not a checkpoint"), r"a\.pkl is damaged"),
    "weights: a fiftieth": Row(Weights("a.pth", cut(0.02)), r"a\.pth is damaged"),
    "weights: half": Row(Weights("a.pth", cut(0.5)), r"a\.pth is damaged"),
    "weights: almost all": Row(Weights("a.pth", cut(0.99)), r"a\.pth is damaged"),
    "weights: half of the old format": Row(
        Weights("a.pth", cut(0.5, _use_new_zipfile_serialization=False)), r"a\.pth is damaged"
    ),
    "weights: overwritten": Row(Weights("a.pth", overwritten), r"a\.pth"),
    "weights: a tensor": Row(Weights("a.pth", torch.zeros(3)), r"a\.pth.*holds a Tensor"),
    "weights: other shape": Row(
        Weights("a.pth", {"model": {"weight": torch.rand(5, 3), "bias": torch.rand(2)}}),
        r"a\.pth.*weight.*5.*3",
    ),
    "weights: tensor missing": Row(
        Weights("a.pth", {"model": {"weight": torch.rand(2, 3)}}), r"a\.pth.*bias"
    ),
    "weights: a number for a name": Row(
        Weights("a.pth", {"model": {7: torch.zeros(3)}}), r"a\.pth: it has an entry 7"
    ),
    "weights: of pycls": Row(Weights("a.pyth", {"model_state": {}}), r"a\.pyth.*pycls"),
    "weights: a list as .pkl": Row(Weights("a.pkl", pickle.dumps([1])), r"a\.pkl.*holds a list"),
    "weights: text in a .pkl": Row(
        Weights("a.pkl", pickle.dumps({"model": {"weight": "x"}})), r"a\.pkl: .*'weight' is a str"
    ),
    "weights: right": Row(
        Weights("a.pth", {"model": {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}}),
        weights_of(1),
    ),
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad_input") / "shapes"
    write_shapes(str(folder), ShapesParams(6, 1, 64, 0))
    return folder


@pytest.fixture
def place(tmp_path, shapes, caplog, monkeypatch):
    return Place(tmp_path, shapes, caplog, monkeypatch)


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_table(place, row):
    if isinstance(row.gives, str):
        with pytest.raises(row.given.errors, match=row.gives):
            row.given.use(place)
    else:
        row.gives(row.given.use(place))
    assert not (place.folder / "ran").exists()  # what a hostile file would have made


ANNOTATION_FILES = {k: v for k, v in TABLE.items() if isinstance(v.given, AnnotationFile)}


@pytest.mark.parametrize("row", ANNOTATION_FILES.values(), ids=ANNOTATION_FILES)
def test_inspection_agrees(tmp_path, row):
    inspection = inspect_annotation_file(*row.given.write(tmp_path))
    assert bool(inspection.report.errors) == isinstance(row.gives, str)
