import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from PIL import Image

from contrastmask import add_contrastmask_config
from contrastmask.data import ContrastMaskDatasetMapper
from contrastmask.data.augmentation import (
    OpenCVResizeShortestEdge,
    OpenCVResizeTransform,
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
