"""Image files: sizes, gray levels, the limit of pixels, and names that differ in their case."""

import numpy as np
import pytest
from PIL import Image

from contrastmask.config import default_config
from contrastmask.data.images import ImageFileError, ImageFolder, ImageReader, read_headers


@pytest.mark.parametrize("orientation", range(1, 9))
def test_headers_say_the_size_that_is_read(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = str(tmp_path / "a.jpg")
    Image.new("RGB", (18, 26)).save(path, exif=exif)
    (header,) = read_headers([path])
    assert header.orientation == orientation
    assert header.size == ImageReader("RGB")(path).shape[:2]


@pytest.mark.parametrize(
    "gray_range, expected",
    [([100, 1100], [0, 0, 128, 255, 255]), ([1100, 100], [255, 255, 128, 0, 0])],
)
def test_gray_levels_of_more_than_8_bits(tmp_path, gray_range, expected):
    path = str(tmp_path / "a.png")
    Image.fromarray(np.array([[0, 100, 600, 1100, 2000]], np.uint16)).save(path)
    cfg = default_config()
    cfg.INPUT.GRAY_RANGE = gray_range
    pixels = ImageReader.from_config(cfg)(path)
    assert pixels.tolist() == [[[x] * 3 for x in expected]]
    cfg.INPUT.GRAY_RANGE = gray_range[:1] * 2
    with pytest.raises(ValueError, match="INPUT.GRAY_RANGE"):
        ImageReader.from_config(cfg)


def test_largest_number_of_pixels(tmp_path):
    path = str(tmp_path / "a.png")
    Image.new("RGB", (30, 20)).save(path)
    usual = Image.MAX_IMAGE_PIXELS
    assert usual is not None  # whatever was read before
    (header,) = read_headers([path])
    enough, too_few = (ImageReader("RGB", max_pixels=x) for x in (600, 599))
    assert enough(path).shape == (20, 30, 3) and not enough.problem_of(header)
    assert "MAX_IMAGE_PIXELS" in too_few.problem_of(header)
    with pytest.raises(ImageFileError, match="a.png.*MAX_IMAGE_PIXELS"):
        too_few(path)
    assert Image.MAX_IMAGE_PIXELS == usual


def test_names_that_differ_in_their_case_only(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("A.png", "a.png"):
        (tmp_path / "deep" / name).touch()
    if len(list((tmp_path / "deep").iterdir())) < 2:
        pytest.skip("the file system does not tell them apart")
    for name in ("A.png", "a.png"):
        found, _ = ImageFolder(str(tmp_path)).find(f"D:\\data\\{name}")
        assert found == str(tmp_path / "deep" / name)
    assert ImageFolder(str(tmp_path)).find("D:\\data\\A.PNG")[0] is None
