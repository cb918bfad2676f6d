import json
import shutil

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import small_model

from contrastmask import Predictor
from contrastmask.data import ClassSplit
from contrastmask.data.masks import to_rle
from contrastmask.inference import complete_masks, read_masks
from contrastmask.inference.complete_masks import MaskCompletion


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete")
    small_model.write_odd_data(folder, num_images=6)
    opts = small_model.options(folder, "complete_masks")
    return folder, Predictor(small_model.write_checkpoint(folder, opts))


@pytest.fixture
def data(setting, tmp_path):
    """Annotation file and image folder of this test alone."""
    folder = setting[0]
    shutil.copy(folder / "annotations" / "train.json", tmp_path / "boxes.json")
    shutil.copytree(folder / "train", tmp_path / "images")
    return tmp_path


@pytest.fixture
def complete(setting, data):
    """Function: keyword arguments of `complete_masks`, which runs on `data`."""

    def run(output="out.json", **kwargs):
        files = [str(data / name) for name in ("boxes.json", "images", output)]
        return complete_masks(setting[1], *files, **{"batch_size": 1, **kwargs})

    return run


@pytest.fixture
def stop_after(setting, monkeypatch):
    """Function: number of images after which the model is interrupted -> list that counts them."""
    model = setting[1].model

    def stop(number):
        seen = []

        def forward(x):
            if len(seen) + len(x) > number:
                raise KeyboardInterrupt
            seen.extend(x)
            return type(model.backbone).forward(model.backbone, x)

        monkeypatch.setattr(model.backbone, "forward", forward)
        return seen

    return stop


def read(path):
    return json.loads(path.read_text(encoding="utf-8-sig"))


def edit(path, change):
    content = read(path)
    change(content)
    path.write_text(json.dumps(content))


def completed(annotations):
    """With what importers insist on."""
    return [{"iscrowd": 0, "segmentation": [], **x} for x in annotations]


def boxes_only(content):
    for x in content["annotations"]:
        x.pop("segmentation", None)


def to_corners(content):
    for x in content["annotations"]:
        left, top, width, height = x["bbox"]
        x["bbox"] = [left, top, left + width, top + height]


def test_every_box_gets_a_mask_and_nothing_else_changes(data, complete, setting, files_parsed):
    def change(content):
        content["info"] = {"é": [1.50, 1e3, 12345678901234567890, True, None, 0.1], "b": {}}
        content["licenses"] = []
        content["annotations"][0]["area"] = 7.0
        content["annotations"][1]["attributes"] = {"occluded": False}

    edit(data / "boxes.json", change)
    completion = complete()
    assert files_parsed == [str(data / "boxes.json")]
    before, after = read(data / "boxes.json"), read(data / "out.json")
    assert list(before) == list(after)
    assert json.dumps({**before, "annotations": 0}) == json.dumps({**after, "annotations": 0})
    sizes = {x["id"]: [x["height"], x["width"]] for x in before["images"]}
    for index, (old, new) in enumerate(
        zip(before["annotations"], after["annotations"], strict=True)
    ):
        if "segmentation" in old or index in completion.empty:
            assert json.dumps(old) == json.dumps(new)
            continue
        segmentation, score = new.pop("segmentation"), new.pop("mask_score")
        assert json.dumps(new) == json.dumps(old)
        assert completion.predicted[index] == segmentation
        assert segmentation["size"] == sizes[old["image_id"]]
        assert 0.5 <= score <= 1 and isinstance(segmentation["counts"], str)
        x, y, w, h = old["bbox"]
        outside = mask_util.decode(segmentation)
        assert outside.any()
        outside[y : y + h, x : x + w] = 0
        assert not outside.any()
    assert len(completion.predicted) > 3 and completion.num_kept > 3
    assert sorted(p.name for p in data.iterdir()) == ["boxes.json", "images", "out.json"]


def test_masks_are_those_of_the_predictor(data, complete, setting):
    predictor = setting[1]
    predicted = complete().predicted
    content = read(data / "boxes.json")
    names = {x["id"]: x["name"] for x in content["categories"]}
    files = {x["id"]: x["file_name"] for x in content["images"]}
    for index, mask in predicted.items():
        x = content["annotations"][index]
        left, top, width, height = x["bbox"]
        box = [left, top, left + width, top + height]
        image = str(data / "images" / files[x["image_id"]])
        (expected,) = predictor.masks_for_boxes(image, [box], names[x["category_id"]])
        # One box or several at once differ by rounding.
        assert mask_util.iou([mask], [expected.mask], [0])[0, 0] > 0.98


def test_byte_order_mark(data, complete):
    expected = complete("plain.json").predicted
    text = (data / "boxes.json").read_bytes()
    (data / "boxes.json").write_bytes(b"\xef\xbb\xbf" + text)
    assert complete().predicted == expected


def test_what_is_box_only(data, complete, caplog):
    """A segmentation that draws something is never overwritten, usable or not."""
    height, width = 64, 44
    pixel = mask_util.encode(np.zeros((height, width), np.uint8, order="F"))
    nothing = [
        None,
        [],
        {},
        [[]],
        {"size": [height, width], "counts": [height * width]},
        {"size": [height, width], "counts": pixel["counts"].decode()},
    ]
    drawn = [[[1, 2, 3, 4]], [[], [1.0, 2.0]], [[70.0, 2, 80, 2, 80, 9]]]

    def change(content):
        image = next(x for x in content["images"] if x["height"] == height)
        first = content["annotations"][0]
        box = {"image_id": image["id"], "category_id": first["category_id"], "bbox": [3, 4, 20, 30]}
        content["annotations"] = [
            {**box, "id": 40 - 3 * i, "segmentation": x} for i, x in enumerate(nothing + drawn)
        ]
        rest = [{"iscrowd": 1}, {"ignore": 1}, {"bbox": [5, 5, 0, 9]}, {}]
        content["annotations"] += [{**box, "id": 50 + i, **x} for i, x in enumerate(rest)]

    edit(data / "boxes.json", change)
    completion = complete()
    assert sorted([*completion.predicted, *completion.empty]) == [0, 1, 2, 3, 4, 5, 12]
    assert completion.not_understood == [6, 7, 8] and completion.num_left_out == 3
    assert "22, 19, 16" in caplog.text and "--all" in caplog.text
    before, after = (read(data / x)["annotations"] for x in ("boxes.json", "out.json"))
    assert completed(before[6:12]) == after[6:12]
    completion = complete(replace=True)
    assert sorted([*completion.predicted, *completion.empty]) == [*range(9), 12]


def test_all_replaces_masks(data, complete):
    kept = complete().num_kept
    completion = complete(replace=True)
    assert completion.num_kept == 0 and kept > 3
    before, after = (read(data / x)["annotations"] for x in ("boxes.json", "out.json"))
    replaced = [
        i for i, x in enumerate(before) if "segmentation" in x and i in completion.predicted
    ]
    assert replaced and all(before[i]["segmentation"] != after[i]["segmentation"] for i in replaced)


@pytest.mark.parametrize("box_format", ["xywh", "xyxy"])
def test_polygons(data, complete, setting, monkeypatch, box_format):
    """Area and box are those of the polygons, which are the masks; the box that was given stays."""
    edit(data / "boxes.json", boxes_only)
    masks = complete("rle.json").predicted
    cfg = setting[1].cfg.clone()
    cfg.defrost()
    cfg.DATASETS.BOX_FORMAT = box_format
    monkeypatch.setattr(setting[1], "cfg", cfg)
    if box_format == "xyxy":
        edit(data / "boxes.json", to_corners)
    completion = complete("polygons.json", mask_format="polygon", tolerance=0)
    given = read(data / "boxes.json")["annotations"]
    assert masks.keys() == completion.predicted.keys() and len(masks) > 3
    for index, x in enumerate(read(data / "polygons.json")["annotations"]):
        if index not in masks:
            assert [x] == completed([given[index]])
            continue
        assert x["given_bbox"] == given[index]["bbox"]
        rle = masks[index]
        assert mask_util.iou([to_rle(x["segmentation"], *rle["size"])], [rle], [0])[0, 0] == 1
        left, top, width, height = mask_util.toBbox(rle).tolist()
        ends = {"xywh": [width, height], "xyxy": [left + width, top + height]}[box_format]
        assert x["bbox"] == [left, top, *ends]
        assert x["area"] == mask_util.area(rle)
    assert completion.overlaps == [1.0] * len(masks)


def test_coarse_polygons_say_how_well_they_fit(data, complete):
    edit(data / "boxes.json", boxes_only)
    masks = complete("rle.json").predicted
    completion = complete("polygons.json", mask_format="polygon", tolerance=3)
    for (index, rle), overlap in zip(sorted(masks.items()), completion.overlaps):
        x = read(data / "polygons.json")["annotations"][index]
        polygons = to_rle(x["segmentation"], *rle["size"])
        assert mask_util.iou([polygons], [rle], [0])[0, 0] == overlap
        assert x["area"] == mask_util.area(polygons)
    assert min(completion.overlaps) < 1


def test_polygons_of_polygons_keep_the_box_that_was_given_first(data, complete):
    given = read(data / "boxes.json")["annotations"]
    options = {"replace": True, "mask_format": "polygon", "tolerance": 3}
    complete("out.json", **options)
    shutil.copy(data / "out.json", data / "boxes.json")
    predicted = complete("again.json", **options).predicted
    before, after = (read(data / x)["annotations"] for x in ("boxes.json", "again.json"))
    assert all(after[i]["given_bbox"] == given[i]["bbox"] for i in predicted)
    assert any(before[i]["bbox"] != given[i]["bbox"] for i in predicted)


def test_a_file_of_polygons_has_no_rle(data, complete):
    """Masks that were given become polygons, the same to the pixel, also of crowds."""
    before = read(data / "boxes.json")
    rles = {i for i, x in enumerate(before["annotations"]) if "segmentation" in x}
    assert len(rles) > 3
    crowd = min(rles)

    def change(content):
        content["annotations"][crowd]["iscrowd"] = 1
        first = content["images"][0]
        square, overlapping = [4.5, 5, 14, 5, 14, 12.25], [8, 3, 20, 3, 20, 10]
        for polygons in ([square, [20, 20, 27, 21, 22, 28]], [square, overlapping]):
            box = {"image_id": first["id"], "category_id": content["categories"][0]["id"]}
            x = {**box, "iscrowd": 0, "id": 900 + len(content["annotations"])}
            content["annotations"].append({**x, "segmentation": polygons})

    edit(data / "boxes.json", change)
    given = read(data / "boxes.json")
    sizes = {x["id"]: (x["height"], x["width"]) for x in given["images"]}
    for mask_format, num_rewritten in (("polygon", len(rles)), ("one-polygon", len(rles) + 2)):
        completion = complete(mask_format=mask_format, tolerance=2)
        assert completion.num_rewritten == num_rewritten
        after = read(data / "out.json")["annotations"]
        lengths = [len(x["segmentation"]) for x in after]
        assert all(isinstance(x["segmentation"], list) for x in after)
        assert mask_format == "polygon" or max(lengths) == 1
        for index in [*rles, len(after) - 2, len(after) - 1]:
            size = sizes[after[index]["image_id"]]
            masks = [to_rle(x[index]["segmentation"], *size) for x in (given["annotations"], after)]
            assert mask_util.iou(masks[:1], masks[1:], [0])[0, 0] == 1
            rest = [dict(x[index], segmentation=0) for x in (given["annotations"], after)]
            assert rest[0] == rest[1]
        drawn = after[-2]["segmentation"][0]
        assert {4.5, 12.25} <= set(drawn)  # the corners that were drawn, not those of pixels


def test_what_importers_insist_on_is_added(data, complete):
    """CVAT, Roboflow and VIA stop where one of these keys is missing."""

    def change(content):
        content.pop("info", None)
        content["licenses"] = [{"id": 3}]
        other = next(x for x in content["images"] if x["height"] == 64)["id"]
        box = {"image_id": other, "category_id": content["categories"][0]["id"]}
        for i, rest in enumerate(({}, {"iscrowd": 1}, {"iscrowd": None, "segmentation": None})):
            content["annotations"].append({**box, "id": 900 + i, "bbox": [3, 4, 0, 0], **rest})

    edit(data / "boxes.json", change)
    complete()
    after = read(data / "out.json")
    assert after["info"] == {} and after["licenses"] == [{"id": 3}]
    assert [(x["iscrowd"], x["segmentation"]) for x in after["annotations"][-3:]] == [
        *((0, []), (1, []), (0, []))
    ]


def test_empty_masks_stay_box_only(data, complete, setting, monkeypatch, caplog):
    head = setting[1].model.roi_heads.mask_head
    forward = head.forward
    monkeypatch.setattr(head, "forward", lambda *args: forward(*args) - 100)
    edit(data / "boxes.json", boxes_only)
    completion = complete()
    before, after = (read(data / x)["annotations"] for x in ("boxes.json", "out.json"))
    assert completed(before) == after and not completion.predicted
    assert completion.empty == list(range(len(before)))
    assert f"{before[0]['id']}, {before[1]['id']}" in caplog.text


@pytest.mark.parametrize(
    "batch_size, interrupted_after, num_left", [(1, 2, 5), (4, 3, 4), (6, 2, 6)]
)
def test_an_interrupted_run_goes_on(
    data, complete, stop_after, batch_size, interrupted_after, num_left
):
    """Of 6 images in batches that stay together; 1 and 4, 2 and 5, 3 and 6 have the same size."""
    edit(data / "boxes.json", boxes_only)
    complete("whole.json", batch_size=batch_size)
    stop_after(interrupted_after)
    with pytest.raises(KeyboardInterrupt):
        complete(batch_size=batch_size)
    assert not (data / "out.json").exists()
    partial = data / "out.json.partial.jsonl"
    content = partial.read_bytes()
    partial.write_bytes(content[:-20])  # as if the power had gone while the last line was written
    seen = stop_after(100)
    complete(batch_size=batch_size)
    assert len(seen) == num_left
    assert (data / "out.json").read_bytes() == (data / "whole.json").read_bytes()
    assert not partial.exists()


def test_partial_results_of_another_run(data, complete, stop_after):
    stop_after(2)
    with pytest.raises(KeyboardInterrupt):
        complete()
    with pytest.raises(ValueError, match="out.json.partial.jsonl.* choice of annotations"):
        complete(replace=True)
    edit(data / "boxes.json", lambda content: content.update(info="changed"))
    with pytest.raises(ValueError, match="out.json.partial.jsonl.* annotation file"):
        complete()


def test_unreadable_images_are_skipped_and_done_later(data, complete):
    edit(data / "boxes.json", boxes_only)
    complete("whole.json", batch_size=4)
    images = [data / "images" / f"{number}.png" for number in (0, 2)]
    whole = [x.read_bytes() for x in images]
    images[0].unlink()
    images[1].write_bytes(whole[1][:100])
    completion = complete(batch_size=4)
    assert [name for name, _ in completion.unreadable] == [str(x) for x in images]
    assert completion.predicted
    for path, content in zip(images, whole):
        path.write_bytes(content)
    assert not complete(batch_size=4).unreadable
    assert (data / "out.json").read_bytes() == (data / "whole.json").read_bytes()


def test_image_of_another_size(data, complete):
    edit(data / "boxes.json", boxes_only)
    image = data / "images" / "1.png"
    cv2.imwrite(str(image), cv2.imread(str(image)).transpose(1, 0, 2))
    ((name, problem),) = complete().unreadable
    assert name == str(image) and "(40, 64)" in problem and "(64, 40)" in problem


def test_batches_give_the_same_masks(complete):
    one, three = complete().predicted, complete(batch_size=3, num_workers=1).predicted
    assert one.keys() == three.keys()
    for key in one:
        assert mask_util.iou([one[key]], [three[key]], [0])[0, 0] > 0.98


def test_mistakes(data, complete, setting):
    with pytest.raises(ValueError, match="mask_format is 'polygons'"):
        complete(mask_format="polygons")

    def rename(content):
        for x in content["categories"]:
            x["name"] = "une" + x["name"]

    with pytest.raises(ValueError, match="images is a folder"):
        complete("images")
    with pytest.raises(ValueError, match="annotation file itself"):
        complete("boxes.json")
    edit(data / "boxes.json", rename)
    with pytest.raises(ValueError, match="boxes.json has none of the model's classes.*unearrow"):
        complete()
    shutil.rmtree(data / "images")
    with pytest.raises(ValueError, match="images' does not exist"):
        complete()


def test_classes_that_the_model_does_not_have(data, complete):
    """They are named, and their annotations stay as they are."""
    first = complete("first.json").predicted
    star, ring = (small_model.IDS[x] for x in ("star", "ring"))

    def rename(content):
        for x in content["categories"]:
            x["name"] = "une" + x["name"] if x["id"] in (star, ring) else x["name"]

    edit(data / "boxes.json", rename)
    completion = complete()
    assert set(completion.unknown_classes) == {"unestar", "unering"}
    annotations = read(data / "boxes.json")["annotations"]
    known = {i for i, x in enumerate(annotations) if x["category_id"] not in (star, ring)}
    assert completion.predicted == {i: x for i, x in first.items() if i in known}
    assert len(completion.predicted) < len(first)


def test_classes_are_matched_by_name(data, complete):
    """With other category ids, which put the classes of the file into another order."""
    first = complete("first.json").predicted

    def change(content):
        for x in content["categories"]:
            x["id"] = 5 * x["id"] % 61
        for x in content["annotations"]:
            x["category_id"] = 5 * x["category_id"] % 61

    edit(data / "boxes.json", change)
    assert complete().predicted == first


SPLIT = ClassSplit(("dog", "eel", "cat"), base=(0,), novel=(2,))


def rle(x0, x1, height=10, width=20):
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[2:6, x0:x1] = 1
    encoded = mask_util.encode(mask)
    return {"size": [height, width], "counts": encoded["counts"].decode()}


@pytest.fixture
def true_masks(tmp_path):
    classes = ((11, 5), (12, 5), (13, 9), (14, 11), (15, 5))
    annotations = [
        {"id": i, "image_id": 1, "category_id": c, "bbox": [2, 2, 8, 8], "segmentation": rle(2, 10)}
        for i, c in classes
    ]
    del annotations[4]["segmentation"]
    annotations.append({**annotations[0], "id": 16, "iscrowd": 1})
    categories = [{"id": 11, "name": "eel"}, {"id": 5, "name": "dog"}, {"id": 9, "name": "cat"}]
    images = [{"id": 1, "file_name": "x", "height": 10, "width": 20}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "full.json").write_text(json.dumps(content))
    return read_masks(str(tmp_path / "full.json"))


def test_comparison(true_masks):
    """Masks belong together by id, whatever the order of the files."""
    assert set(true_masks) == {11, 12, 13, 14}
    completion = MaskCompletion([{"id": i} for i in (15, 14, 13, 12, 11, 99)])
    completion.predicted = dict(
        enumerate([rle(2, 10), rle(12, 14), rle(6, 10), rle(2, 6), rle(2, 10), rle(2, 4)])
    )
    table = completion.compare(true_masks, SPLIT)
    rows = {x[1]: x[2:5] for x in (row.split("|") for row in table.splitlines()[2:-1])}
    rows = {key.strip(): [float(x) for x in values] for key, values in rows.items()}
    assert rows == {
        "base": [2, 0.75, 0.5],
        "novel": [1, 0.5, 0.5],
        "unused": [1, 0, 0.5],
        "all": [4, 0.5, 0.5],
    }
    assert table.splitlines()[-1].startswith("2 annotations have no mask")
    completion.predicted, completion.empty = {4: rle(2, 10)}, [3]
    assert "| base      |       2 |               0.500 |" in completion.compare(true_masks, SPLIT)


def test_comparison_with_an_image_of_another_size(true_masks):
    completion = MaskCompletion([{"id": 13}])
    completion.predicted = {0: rle(2, 10, width=30)}
    with pytest.raises(ValueError, match=r"13.*\[10, 30\].*\[10, 20\]"):
        completion.compare(true_masks, SPLIT)
