"""The front door: a checkpoint, an image, and nothing else."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import small_model
import torch
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from PIL import Image

import contrastmask
from contrastmask.data import ContrastMaskDatasetMapper
from contrastmask.data.images import ImageFileError, ImageReader
from contrastmask.data.shapes import SHAPE_BASE_CLASSES
from contrastmask.predictor import (
    ModelInput,
    _paste,
    detect,
    encode,
    masks_for_boxes,
    to_rgb,
)

HEIGHT, WIDTH = 50, 90
BOXES = np.array([[5.5, 4, 40, 30.25], [50, 5, 85, 49], [3, 20, 70, 48]])

READER = ImageReader("RGB")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Path of a checkpoint; its training data is gone."""
    folder = tmp_path_factory.mktemp("predictor")
    small_model.write_odd_data(folder)
    opts = small_model.options(folder, "predictor")
    path = small_model.write_checkpoint(folder, [*opts, "DATASETS.BASE_CLASSES", "['auto']"])
    content = json.loads((folder / "annotations" / "train.json").read_text())
    masked = {x["category_id"] for x in content["annotations"] if "segmentation" in x}
    (folder / "masked.json").write_text(json.dumps(sorted(masked)))
    for name in ("train", "annotations"):
        for x in (folder / name).iterdir():
            x.unlink()
    return path


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return contrastmask.Predictor(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def image():
    """(H, W, 3) RGB; all channels and all quarters differ."""
    pixels = np.random.default_rng(0).integers(0, 80, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[5:30, 8:40] += np.array([150, 60, 20], np.uint8)
    return pixels


@pytest.fixture
def count(monkeypatch, predictor):
    """List that gets an entry for each run of the backbone."""
    calls = []
    predictor._pixels = predictor._encoded = None
    forward = predictor.model.backbone.forward
    monkeypatch.setattr(
        predictor.model.backbone, "forward", lambda x: calls.append(x.shape) or forward(x)
    )
    return calls


def same(a, b):
    return len(a) == len(b) > 0 and all(
        torch.equal(getattr(a, k), getattr(b, k)) for k in ("scores", "pred_classes", "pred_masks")
    )


def test_classes(predictor, checkpoint):
    by_id = sorted(small_model.IDS, key=small_model.IDS.get)
    masked = json.loads(Path(checkpoint).with_name("masked.json").read_text())
    assert predictor.class_names == tuple(by_id)
    assert predictor.base == tuple(x for x in by_id if small_model.IDS[x] in masked)
    assert set(predictor.base) < set(SHAPE_BASE_CLASSES)
    assert predictor.novel == tuple(x for x in by_id if small_model.IDS[x] not in masked)
    assert predictor.cfg.MODEL.FPN.OUT_CHANNELS == 32 and predictor.cfg.MODEL.DEVICE == "cpu"


def test_detections_are_those_of_the_evaluation(predictor, image, tmp_path):
    """Mapper and GeneralizedRCNN, as Detectron2's evaluation loop runs them."""
    cv2.imwrite(str(tmp_path / "image.png"), image[..., ::-1])
    mapper = ContrastMaskDatasetMapper(predictor.cfg, is_train=False)
    with torch.no_grad():
        (output,) = predictor.model([mapper({"file_name": str(tmp_path / "image.png")})])
    expected = output["instances"]
    assert expected.image_size == (HEIGHT, WIDTH)
    path = tmp_path / "image.png"
    as_list = predictor([str(path), image])
    for found in (predictor(image), predictor(path), predictor(Image.open(path)), *as_list):
        assert same(found, expected)
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert isinstance(as_list, list) and not same(predictor(image[..., ::-1]), expected)


def test_config_with_another_order_of_channels(checkpoint, image):
    """As if the same image was seen with red and blue exchanged."""
    bgr = contrastmask.Predictor(checkpoint, opts=["INPUT.FORMAT", "BGR"])
    rgb = contrastmask.Predictor(checkpoint)
    assert same(bgr(image[..., ::-1]), rgb(image)) and not same(bgr(image), rgb(image))


def test_kinds_of_images(image, tmp_path):
    gray = image[..., 0]
    threefold = np.stack([gray] * 3, axis=2)
    alpha = np.full((HEIGHT, WIDTH, 1), 7, np.uint8)
    assert np.array_equal(to_rgb(gray, READER), threefold)
    assert np.array_equal(to_rgb(gray[..., None], READER), threefold)
    assert np.array_equal(to_rgb(np.concatenate([image, alpha], axis=2), READER), image)
    assert np.array_equal(to_rgb(Image.fromarray(gray), READER), threefold)
    turned = Image.fromarray(image).transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    for x in (tmp_path / "turned.png", str(tmp_path / "turned.png")):
        assert np.array_equal(to_rgb(x, READER), image)
        assert np.array_equal(to_rgb(Image.open(x), READER), image)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5, 2), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((2, 4, 5, 3), np.uint8),
        Image.new("I;16", (5, 4)),
        torch.zeros(3, 4, 5),
        "no.png",
    ],
    ids=lambda x: str(getattr(x, "shape", x))[:20],
)
def test_what_is_no_image(bad):
    with pytest.raises((ImageFileError, ValueError, TypeError), match="no.png|[Ii]mage|mode I;16"):
        to_rgb(bad, READER)


def test_masks_for_boxes_are_those_of_detectron2(predictor, image):
    """The same through GeneralizedRCNN.inference and its post-processing."""
    classes = [3, 11, 0]
    found = predictor.masks_for_boxes(image, BOXES, classes, rle=False)
    height, width = predictor._encoded.images.image_sizes[0]
    assert (height, width) != (HEIGHT, WIDTH) and height < width
    instances = Instances((height, width))
    scale = torch.tensor([width / WIDTH, height / HEIGHT] * 2)
    instances.pred_boxes = Boxes(torch.tensor(BOXES).float() * scale)
    instances.pred_classes = torch.tensor(classes)
    with torch.no_grad():
        (output,) = GeneralizedRCNN.inference(
            predictor.model, predictor._encoded.inputs, [instances]
        )
    expected = output["instances"].pred_masks.numpy()
    assert expected.shape == (3, HEIGHT, WIDTH)
    for (mask, score), other, (x0, y0, x1, y1) in zip(found, expected, BOXES.astype(int)):
        assert mask.dtype == bool and mask.any() and (mask != other).mean() < 0.001
        mask = mask.copy()
        mask[y0 : y1 + 1, x0 : x1 + 1] = False
        assert not mask.any() and 0.5 <= score <= 1
    rles = predictor.masks_for_boxes(image, BOXES, classes)
    for rle, mask in zip(rles, found):
        assert isinstance(rle.mask["counts"], str) and rle.score == mask.score
        assert np.array_equal(mask_util.decode(rle.mask), mask.mask)


def test_colors_move_the_masks_of_given_boxes(checkpoint, predictor, image):
    """Those of the image that the boxes are in, here the second of a batch."""
    moving = contrastmask.Predictor(
        checkpoint, device="cpu", opts=["MODEL.ROI_MASK_HEAD.COLOR_CRF.AT_TEST", "True"]
    )
    alone = moving.masks_for_boxes(image, BOXES, [3, 11, 0], rle=False)
    plain = predictor.masks_for_boxes(image, BOXES, [3, 11, 0], rle=False)
    assert any((x.mask != y.mask).sum() > 20 for x, y in zip(alone, plain))
    to_input = ModelInput(moving.cfg)
    encoded = encode(moving.model, [to_input(image[::-1, ::-1]), to_input(image)])
    _, second = masks_for_boxes(
        moving.model, encoded, [BOXES[:1], BOXES], [[3], [3, 11, 0]], rle=False
    )
    for x, y in zip(second, alone):
        assert (x.mask != y.mask).sum() <= 2


def test_classes_and_boxes_in_all_forms(predictor, image):
    names = predictor.class_names
    expected = predictor.masks_for_boxes(image, BOXES, [7, 7, 7])
    for boxes in (BOXES.tolist(), torch.tensor(BOXES), Boxes(torch.tensor(BOXES))):
        for classes in (7, names[7], [names[7], 7, np.int64(7)], torch.tensor([7, 7, 7])):
            assert predictor.masks_for_boxes(image, boxes, classes) == expected
    assert predictor.masks_for_boxes(image, BOXES, [7, 8, 7])[1] != expected[1]
    assert predictor.masks_for_boxes(image, [], 7) == []
    assert predictor.masks_for_boxes(image, np.zeros((0, 4)), []) == []


def test_boxes_are_clipped_to_width_and_height(predictor, image):
    """The image is wider than high."""
    inside = predictor.masks_for_boxes(image, [[60, 10, WIDTH, HEIGHT]], 2)
    assert predictor.masks_for_boxes(image, [[60, 10, 900, 900]], 2) == inside
    left = predictor.masks_for_boxes(image, [[0, 0, 30, 20]], 2)
    assert predictor.masks_for_boxes(image, [[-80, -5, 30, 20]], 2) == left


def test_many_boxes(predictor, image):
    """Also beyond the number that is pasted at once, each mask is in its box."""
    number = 150
    x, y = np.divmod(np.arange(number), 13)
    boxes = np.stack([6 * x, 3 * y, 6 * x + 16, 3 * y + 9], axis=1).astype(float)
    masks = predictor.masks_for_boxes(image, boxes, np.arange(number) % 14, rle=False)
    assert len(masks) == number and len(np.unique(boxes, axis=0)) == number
    for i, ((x0, y0, x1, y1), (mask, _)) in enumerate(zip(boxes.astype(int), masks)):
        outside = mask.copy()
        outside[y0:y1, x0:x1] = False
        assert mask.any() and not outside.any(), i
    for i in (0, 63, 64, 65, 149):
        (alone,) = predictor.masks_for_boxes(image, boxes[i : i + 1], i % 14, rle=False)
        assert (alone.mask != masks[i].mask).sum() <= 1
        assert alone.score == pytest.approx(masks[i].score, abs=1e-3)


def test_batch_of_images_of_other_sizes(predictor, image):
    """They have the same size for the model, and another one as files."""
    large = cv2.resize(image, (2 * WIDTH, 2 * HEIGHT))
    to_input = ModelInput(predictor.cfg)
    encoded = encode(predictor.model, [to_input(image), to_input(large)])
    assert len(set(encoded.images.image_sizes)) == 1
    small_found, large_found = detect(predictor.model, encoded)
    assert small_found.image_size == (HEIGHT, WIDTH) and len(small_found)
    assert large_found.image_size == (2 * HEIGHT, 2 * WIDTH) and len(large_found)
    boxes, classes = [BOXES[:1], 2 * BOXES[:2]], [[3], [3, 4]]
    (first,), (second, third) = masks_for_boxes(predictor.model, encoded, boxes, classes)
    assert first.mask["size"] == [HEIGHT, WIDTH]
    assert second.mask["size"] == third.mask["size"] == [2 * HEIGHT, 2 * WIDTH]
    area = mask_util.area(first.mask)
    assert area > 0 and mask_util.area(second.mask) == pytest.approx(4 * area, rel=0.3)
    for mask, (x0, y0, x1, y1) in ((second, 2 * BOXES[0]), (third, 2 * BOXES[1])):
        x, y, width, height = mask_util.toBbox(mask.mask)
        assert x0 - 1 <= x and y0 - 1 <= y and x + width <= x1 + 1 and y + height <= y1 + 1


def test_scores_and_empty_masks():
    probabilities = torch.zeros(4, 4, 4)
    probabilities[0, :2] = 0.75
    probabilities[0, 2:] = 0.25
    probabilities[2] = 0.5  # just in
    probabilities[3] = 0.9  # but the box lies between the centers of pixels
    boxes = np.array([[2.0, 2, 10, 10], [0, 0, 5, 5], [20, 1, 30, 11], [5.6, 7.6, 6.4, 8.4]])
    top, nothing, right, tiny = _paste(probabilities, boxes, (20, 30), rle=True)
    assert (top.score, nothing.score, right.score) == (0.75, 0, 0.5)
    mask = mask_util.decode(top.mask)
    assert mask.shape == (20, 30) and np.array_equal(np.unique(mask.nonzero()[1]), range(2, 10))
    assert mask[2:6].any() and not mask[7:].any()
    assert mask_util.area(nothing.mask) == 0 and nothing.mask["size"] == [20, 30]
    assert mask_util.area(tiny.mask) == tiny.score == 0
    x, y, width, height = mask_util.toBbox(right.mask)  # the outermost cells fade
    assert 20 <= x <= 21 and 1 <= y <= 2 and width >= 8 and height >= 8


def test_an_image_is_encoded_once(predictor, image, count):
    given = image.copy()
    predictor.set_image(given)
    first = predictor.masks_for_boxes(None, BOXES[:1], 4)
    assert predictor.masks_for_boxes(given, BOXES[:1], 4) == first
    predictor.masks_for_boxes(image, BOXES[1:], 5)
    predictor.masks_for_boxes(Image.fromarray(image), BOXES[1:], 5)
    predictor(image)
    assert len(count) == 1
    given[10:20, 10:30] = 255  # changed in place: old features must not be used
    changed = predictor.masks_for_boxes(given, BOXES[:1], 4)
    assert len(count) == 2 and changed != first
    assert predictor.masks_for_boxes(image, BOXES[:1], 4) == first and len(count) == 3
    assert predictor.masks_for_boxes(image[:, :60], [[5, 5, 50, 40]], 4) and len(count) == 4


def test_an_image_that_cannot_be_encoded_leaves_none(predictor, image, monkeypatch):
    predictor.set_image(image)
    monkeypatch.setattr(predictor.model.backbone, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predictor.set_image(image[::-1])
    with pytest.raises(ValueError, match="set_image"):
        predictor.masks_for_boxes(None, BOXES, 1)


@pytest.mark.parametrize(
    "boxes, classes, message",
    [
        ([[5, 5, 9, 9], [95, 5, 99, 9]], 0, r"Box 1.*95.* 90 x 50"),
        ([[5, 5, 5, 9]], 0, "Box 0"),
        ([[5, 5, 4, 9]], 0, "Box 0"),
        ([[5, 5, float("nan"), 9]], 0, "Box 0"),
        ([[5, 5, float("inf"), 9]], 0, "Box 0"),
        ([5, 5, 9, 9], 0, r"\(N, 4\)"),
        ([[5, 5, 9]], 0, r"\(N, 4\)"),
        ([[5, 5, 9, 9]], [0, 1], "1 boxes and 2 classes"),
        ([[5, 5, 9, 9]], 14, "no class 14"),
        ([[5, 5, 9, 9]], -1, "no class -1"),
        ([[5, 5, 9, 9]], "stra", "'stra'.*'star'"),
    ],
)
def test_bad_boxes_and_classes(predictor, image, boxes, classes, message):
    with pytest.raises(ValueError, match=message):
        predictor.masks_for_boxes(image, boxes, classes)


def test_model_without_masks(tmp_path, image):
    small_model.write_odd_data(tmp_path)
    opts = [*small_model.options(tmp_path, "predictor_boxes"), "MODEL.MASK_ON", "False"]
    opts += ["DATASETS.BASE_CLASSES", "[]"]
    predictor = contrastmask.Predictor(small_model.write_checkpoint(tmp_path, opts))
    assert predictor.base == () and len(predictor.novel) == 14
    assert len(predictor(image)) > 0 and not predictor(image).has("pred_masks")
    with pytest.raises(ValueError, match="MODEL.MASK_ON"):
        predictor.masks_for_boxes(image, BOXES, 0)


def test_config_name_and_weights(tmp_path, image):
    """As for the checkpoints of others, which hold tensors only."""
    small_model.write_odd_data(tmp_path)
    opts = small_model.options(tmp_path, "predictor_plain")
    _, model = small_model.write_weights(tmp_path / "plain.pth", opts)
    with pytest.raises(ValueError, match="plain.pth does not hold its config"):
        contrastmask.Predictor(str(tmp_path / "plain.pth"))
    predictor = contrastmask.Predictor("quickstart.yaml", tmp_path / "plain.pth", opts=opts)
    assert predictor.base and not set(predictor.base) & set(predictor.novel)
    for name, value in predictor.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert len(predictor(image)) > 0 and not predictor.model.training


def test_overrides(checkpoint, image):
    """Also what training began without is loaded."""
    opts = ["MODEL.WEIGHTS_EXCLUDE", "['roi_heads.box_predictor', 'backbone']"]
    opts += ["TEST.DETECTIONS_PER_IMAGE", "3", "MODEL.CHANNELS_LAST", "True"]
    predictor = contrastmask.Predictor(checkpoint, opts=opts)
    assert len(predictor(image)) == 3
    saved = torch.load(checkpoint, weights_only=True)["model"]
    for name, value in predictor.model.state_dict().items():
        assert torch.equal(value, saved[name]), name
    weight = predictor.model.roi_heads.contrastive_head.encoder[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_device(checkpoint):
    predictor = contrastmask.Predictor(checkpoint, device="cpu:0")
    assert predictor.cfg.MODEL.DEVICE == "cpu:0" and predictor.model.device.type == "cpu"
    if not torch.cuda.is_available():
        assert contrastmask.Predictor(checkpoint, device="cuda").cfg.MODEL.DEVICE == "cpu"


def test_incomplete_checkpoint(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content["model"]["roi_heads.mask_head.fuse.weight"]
    torch.save(content, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="part.pth.*roi_heads.mask_head.fuse.weight"):
        contrastmask.Predictor(str(tmp_path / "part.pth"))


def test_the_package_alone(tmp_path):
    """`import contrastmask` is enough for heads and weight paths, with Detectron2's own loader."""
    code = """
import contrastmask, torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.utils.file_io import PathManager
ROI_HEADS_REGISTRY.get("ContrastMaskROIHeads")
DetectionCheckpointer(torch.nn.Linear(1, 1)).load("efficientnet-lite://efficientnet-lite0")
assert PathManager.exists("torchvision://resnet50")
cfg = contrastmask.get_config("quickstart.yaml", ["SEED", "7"])
cfg.MODEL.DEVICE = "cpu"
print(contrastmask.__version__, cfg.SEED, contrastmask.Predictor.__name__)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=small_model.ROOT)
    assert re.search(r"^\d+\.\d+\S* 7 Predictor$", done.stdout, re.M), done.stderr
