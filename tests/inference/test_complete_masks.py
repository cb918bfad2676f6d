import json
import shutil

import numpy as np
import pycocotools.mask as mask_util
import pytest
import small_model
import torch
from detectron2.structures import Boxes, Instances

from contrastmask.data.coco_format import AnnotationFileError
from contrastmask.data.shapes import SHAPE_CLASSES
from contrastmask.inference import complete_masks
from contrastmask.inference.journal import JournalError


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete")
    small_model.write_data(folder)
    opts = small_model.options(folder, "complete_masks")
    cfg, model = small_model.write_weights(folder / "model.pth", opts)
    return folder, cfg, model


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
    _, cfg, model = setting

    def run(output="out.json", model=model, class_names=SHAPE_CLASSES, **kwargs):
        files = [str(data / name) for name in ("boxes.json", "images", output)]
        return complete_masks(cfg, model, *files, class_names, **{"batch_size": 1, **kwargs})

    return run


def read(path):
    return json.loads(path.read_text(encoding="utf-8-sig"))


def edit(path, change):
    content = read(path)
    change(content)
    path.write_text(json.dumps(content))


def test_every_box_gets_a_mask_and_nothing_else_changes(data, complete):
    completion = complete()
    before, after = read(data / "boxes.json"), read(data / "out.json")
    assert list(before) == list(after)
    assert {k: v for k, v in before.items() if k != "annotations"} == {
        k: v for k, v in after.items() if k != "annotations"
    }
    num_new = 0
    for old, new in zip(before["annotations"], after["annotations"], strict=True):
        if "segmentation" in old or old["id"] in completion.empty:
            assert list(old.items()) == list(new.items())
            continue
        num_new += 1
        segmentation, score = new.pop("segmentation"), new.pop("mask_score")
        assert new == old
        assert completion.masks[old["id"]] == segmentation
        assert 0.5 <= score <= 1 and isinstance(segmentation["counts"], str)
        x, y, w, h = old["bbox"]
        outside = mask_util.decode(segmentation)
        assert outside.any()
        outside[y : y + h, x : x + w] = 0
        assert not outside.any()
    assert num_new == len(completion.masks) > 3 and completion.num_kept > 3
    assert sorted(p.name for p in data.iterdir()) == ["boxes.json", "images", "out.json"]


def test_masks_are_those_of_the_boxes_of_the_model(data, complete, setting):
    """The same through Detectron2's own post-processing, without resizing of the image."""
    _, cfg, model = setting
    masks = complete().masks
    content = read(data / "boxes.json")
    record = content["images"][0]
    boxes = [x for x in content["annotations"] if x["image_id"] == record["id"]]
    from detectron2.data.detection_utils import read_image

    image = read_image(str(data / "images" / record["file_name"]), cfg.INPUT.FORMAT)
    instances = Instances(image.shape[:2])
    xywh = torch.tensor([x["bbox"] for x in boxes]).float()
    instances.pred_boxes = Boxes(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1))
    instances.pred_classes = torch.tensor([x["category_id"] - 1 for x in boxes])
    inputs = {"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}
    with torch.no_grad():
        (output,) = model.inference([inputs], [instances])
    compared = 0
    for x, expected in zip(boxes, output["instances"].pred_masks.numpy()):
        if x["id"] in masks:
            found = mask_util.decode(masks[x["id"]])
            assert (found == expected).mean() > 0.999
            compared += 1
    assert compared


def test_byte_order_mark_spaces_and_number_formats_stay(data, complete):
    text = (data / "boxes.json").read_text().replace('"iscrowd": 0', '"iscrowd" :0, "w": 1.50e1')
    text = text.replace("[{", "[\r\n{ ", 1)
    (data / "boxes.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    completion = complete(replace=True)
    after = (data / "out.json").read_bytes().decode("utf-8-sig")
    assert (data / "out.json").read_bytes()[:3] == b"\xef\xbb\xbf"
    assert after.count("1.50e1") == text.count("1.50e1") and after.count("[\r\n{ ") == 1
    assert completion.num_kept == 0 and len(completion.masks) > 10


def test_what_counts_as_box_only(data, complete):
    kinds = [None, [], [[1, 2, 3, 4]], {"size": [64, 64], "counts": [64 * 64]}]

    def change(content):
        chosen = [x for x in content["annotations"] if "segmentation" in x][:6]
        for x, segmentation in zip(chosen, kinds):
            x["segmentation"] = segmentation
        chosen[4]["iscrowd"] = 1
        chosen[5]["bbox"][2] = 0
        content["changed"] = [x["id"] for x in chosen]

    edit(data / "boxes.json", change)
    completion = complete()
    changed = read(data / "out.json")["changed"]
    assert set(changed[:4]) <= set(completion.masks) | set(completion.empty)
    assert not set(changed[4:]) & set(completion.masks)
    assert completion.num_left_out == 2


class StopsAfter(torch.nn.Module):
    """The model until `number` images have been seen."""

    def __init__(self, model, number):
        super().__init__()
        self.model, self.number, self.seen = model, number, 0

    def state_dict(self):
        return self.model.state_dict()

    def inference(self, inputs, **kwargs):
        if self.seen + len(inputs) > self.number:
            raise KeyboardInterrupt
        self.seen += len(inputs)
        return self.model.inference(inputs, **kwargs)


def test_an_interrupted_run_goes_on(data, complete, setting):
    model = setting[2]
    complete("whole.json")
    with pytest.raises(KeyboardInterrupt):
        complete(model=StopsAfter(model, 2))
    assert not (data / "out.json").exists()
    journal = data / "out.json.journal"
    content = journal.read_bytes()
    journal.write_bytes(content[:-20])  # as if the power had gone while the last line was written
    counting = StopsAfter(model, 100)
    complete(model=counting)
    num_images = len({x["image_id"] for x in read(data / "boxes.json")["annotations"]})
    assert 2 <= counting.seen < num_images + 1 and counting.seen <= num_images - 1
    assert (data / "out.json").read_bytes() == (data / "whole.json").read_bytes()
    assert not journal.exists()


def test_journal_of_another_run(data, complete, setting):
    with pytest.raises(KeyboardInterrupt):
        complete(model=StopsAfter(setting[2], 2))
    with pytest.raises(JournalError, match="choice of annotations"):
        complete(replace=True)
    edit(data / "boxes.json", lambda content: content.update(info="changed"))
    with pytest.raises(JournalError, match="annotation file"):
        complete()


def test_unreadable_images_are_skipped_and_done_later(data, complete):
    complete("whole.json")
    images = sorted((data / "images").iterdir())
    whole = [images[0].read_bytes(), images[1].read_bytes()]
    images[0].unlink()
    images[1].write_bytes(whole[1][:100])
    completion = complete(batch_size=2)
    assert {name for name, _ in completion.unreadable} == {str(x) for x in images[:2]}
    assert completion.masks
    for path, content in zip(images, whole):
        path.write_bytes(content)
    assert not complete(batch_size=2).unreadable
    for first, second in zip(*(read(data / x)["annotations"] for x in ("whole.json", "out.json"))):
        assert first.keys() == second.keys()
        if "mask_score" in first:
            assert first["mask_score"] == pytest.approx(second["mask_score"], abs=1e-3)


def test_image_of_another_size(data, complete):
    def change(content):
        content["images"][0]["height"] += 1
        for x in content["annotations"]:
            if x["image_id"] == content["images"][0]["id"]:
                x.pop("segmentation", None)

    edit(data / "boxes.json", change)
    ((name, problem),) = complete().unreadable
    assert "size" in problem.lower() or "mismatch" in problem.lower()


def test_batches_give_the_same_masks(complete):
    one, three = complete().masks, complete(batch_size=3, num_workers=1).masks
    assert one.keys() == three.keys()
    for key in one:
        assert mask_util.iou([one[key]], [three[key]], [0])[0, 0] > 0.98


def test_mistakes(data, complete, setting):
    with pytest.raises(AnnotationFileError, match="know the categories star, zigzag"):
        complete(class_names=SHAPE_CLASSES[:-4] + ("a", "b", "triangle", "c"))
    with pytest.raises(ValueError, match="annotation file itself"):
        complete("boxes.json")
    shutil.rmtree(data / "images")
    with pytest.raises(ValueError, match="images' does not exist"):
        complete()


def test_classes_are_matched_by_name(data, complete):
    """With other category ids, and with the classes of the file in another order."""
    first = complete("first.json").masks

    def change(content):
        for x in content["categories"]:
            x["id"] = 100 - 3 * x["id"]
        for x in content["annotations"]:
            x["category_id"] = 100 - 3 * x["category_id"]

    edit(data / "boxes.json", change)
    assert complete().masks == first


def test_scores_and_empty_masks():
    from contrastmask.inference.box_masks import _to_box_masks

    probabilities = torch.zeros(2, 4, 4)
    probabilities[0, :2] = 0.75
    probabilities[0, 2:] = 0.25
    boxes = torch.tensor([[2.0, 2.0, 10.0, 10.0], [0.0, 0.0, 5.0, 5.0]])
    top, nothing = _to_box_masks(probabilities, boxes, (20, 30))
    assert top.score == 0.75 and nothing == (None, 0.0)
    mask = mask_util.decode(top.segmentation)
    assert mask.shape == (20, 30) and np.array_equal(np.unique(mask.nonzero()[1]), range(2, 10))
    assert mask[2:6].any() and not mask[7:].any()
