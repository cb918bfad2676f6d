import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.modeling import DatasetMapperTTA
from PIL import Image

from contrastmask import add_contrastmask_config
from contrastmask.data import ContrastMaskDatasetMapper
from contrastmask.data.resizing import (
    OpenCVResizeShortestEdge,
    OpenCVResizeTransform,
    TTAMapper,
    with_resize_backend,
)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_image_is_resized_by_opencv(image):
    resize = OpenCVResizeTransform(40, 60, 25, 30)
    expected = cv2.resize(image, (30, 25), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(resize.apply_image(image), expected)
    assert np.array_equal(resize.apply_image(image[:, :, ::-1]), expected[:, :, ::-1])
    theirs = T.ResizeTransform(40, 60, 25, 30).apply_image(image)
    assert not np.array_equal(theirs, expected)
    for shape in [(40, 60), (40, 60, 1)]:
        assert resize.apply_image(np.zeros(shape, np.float32)).shape == (25, 30, *shape[2:])
    assert resize.inverse().apply_image(expected).shape == image.shape


def test_the_rest_is_as_in_detectron2(image):
    ours, theirs = (cls(40, 60, 25, 30) for cls in (OpenCVResizeTransform, T.ResizeTransform))
    mask = image[:, :, 0] > 128
    for x in (mask.astype(np.uint8), image[:, :, 0]):
        assert np.array_equal(ours.apply_segmentation(x), theirs.apply_segmentation(x))
    boxes = np.random.default_rng(0).random((5, 4)) * 40
    assert np.array_equal(ours.apply_box(boxes.copy()), theirs.apply_box(boxes.copy()))
    assert np.array_equal(ours.apply_image(image, Image.NEAREST), theirs.apply_segmentation(image))


@pytest.mark.parametrize(
    "h, w, short, longest, expected",
    [
        (190, 250, 256, 320, (243, 320)),
        (250, 190, 256, 320, (320, 243)),
        (480, 640, 800, 1333, (800, 1067)),
        (300, 900, 800, 1333, (444, 1333)),
        # One factor for both sides: Detectron2 gives (418, 1333).
        (54, 172, 800, 1333, (419, 1333)),
    ],
)
def test_output_sizes(h, w, short, longest, expected):
    resize = OpenCVResizeShortestEdge([short, short], longest, "choice")
    transform = resize.get_transform(np.zeros((h, w, 3), np.uint8))
    assert (transform.new_h, transform.new_w) == expected


def test_sampled_sizes(image):
    np.random.seed(0)
    for style, sizes in (("range", set(range(20, 26))), ("choice", {20, 25})):
        resize = OpenCVResizeShortestEdge([20, 25], 100, style)
        assert {resize.get_transform(image).new_h for _ in range(200)} == sizes
    assert isinstance(OpenCVResizeShortestEdge(0).get_transform(image), T.NoOpTransform)


def test_choice_of_the_backend():
    augmentations = [T.ResizeShortestEdge([20, 30], 50, "range"), T.RandomFlip()]
    assert with_resize_backend(augmentations, "pil") is augmentations
    resize, flip = with_resize_backend(augmentations, "opencv")
    assert isinstance(resize, OpenCVResizeShortestEdge) and flip is augmentations[1]
    assert (resize.short_edge_length, resize.max_size, resize.is_range) == ([20, 30], 50, True)
    with pytest.raises(ValueError, match="INPUT.RESIZE_BACKEND.*'cv'"):
        with_resize_backend(augmentations, "cv")


@pytest.mark.parametrize("is_train", [True, False])
def test_mapper_resizes_as_the_config_says(image, tmp_path, is_train):
    Image.fromarray(image).save(tmp_path / "a.png")
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = (30,)
    cfg.INPUT.MIN_SIZE_TEST = 30
    cfg.INPUT.RESIZE_BACKEND = "opencv"
    mapper = ContrastMaskDatasetMapper(cfg, is_train=is_train)
    record = {"file_name": str(tmp_path / "a.png"), "height": 40, "width": 60, "annotations": []}
    got = mapper(record)["image"].permute(1, 2, 0).numpy()
    assert np.array_equal(got, cv2.resize(image, (45, 30)))


# Test-time augmentation

TTA_SIZES = (32, 0, 50)  # 0: as it is


def tta_cfg(backend, flip):
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.INPUT.RESIZE_BACKEND = backend
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = TTA_SIZES, 70, flip
    return cfg


@pytest.fixture
def record():
    """An image that the test loader has already made smaller."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 60), dtype=np.uint8)
    return {"image": torch.from_numpy(pixels), "height": 80, "width": 120, "file_name": "a.jpg"}


@pytest.mark.parametrize("flip", [True, False])
def test_pillow_in_tta_is_as_in_detectron2(record, flip):
    cfg = tta_cfg("pil", flip)
    box = np.array([[10.0, 20.0, 50.0, 70.0]])
    versions, expected = TTAMapper(cfg)(record), DatasetMapperTTA(cfg)(record)
    assert len(versions) == len(expected) == len(TTA_SIZES) * (2 if flip else 1)
    for ours, theirs in zip(versions, expected):
        assert torch.equal(ours["image"], theirs["image"])
        assert ours["file_name"] == "a.jpg"
        moved = ours["transforms"].apply_box(box)
        np.testing.assert_allclose(moved, theirs["transforms"].apply_box(box), atol=1e-9)
        np.testing.assert_allclose(ours["transforms"].inverse().apply_box(moved), box, atol=1e-9)


def test_opencv_in_tta(record):
    versions = TTAMapper(tta_cfg("opencv", flip=True))(record)
    image = record["image"].permute(1, 2, 0).numpy()
    for (plain, flipped), size in zip(
        zip(versions[::2], versions[1::2]), [(48, 32), (60, 40), (70, 47)]
    ):
        expected = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(plain["image"].permute(1, 2, 0), expected)
        assert torch.equal(flipped["image"], plain["image"].flip(2))
        corners = plain["transforms"].apply_box(np.array([[0.0, 0.0, 120.0, 80.0]]))
        np.testing.assert_allclose(corners, [[0, 0, *size]])
