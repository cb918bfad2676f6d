"""Reading image files, with errors that name the image."""

from contextlib import contextmanager

from detectron2.data import detection_utils as utils
from detectron2.utils.file_io import PathManager
from PIL import Image

__all__ = ["ImageFileError", "check_pixel_type", "naming_image", "read_image"]


class ImageFileError(ValueError):
    """An image file that cannot be used; says which and why."""


def check_pixel_type(path: str) -> None:
    """Refuse pixels of more than 8 bits that Pillow would clip to 255: grey levels of 16 and 32.

    Args:
        path (str): image file; its header is read.

    Raises:
        ValueError: for such an image.
    """
    with PathManager.open(path, "rb") as f, Image.open(f) as image:
        mode = image.mode
    if mode == "F" or mode.startswith("I"):
        raise ValueError(
            f"its grey levels have more than 8 bits (Pillow's mode {mode}), and which of them are "
            "black and white is not known. Convert it to 8 bits"
        )


def read_image(path: str, format: str):
    """
    Args:
        path (str): image file.
        format (str): as in Detectron2: "RGB", "BGR", ...

    Returns:
        array: (H, W, 3), turned as the image's EXIF orientation says.

    Raises:
        ImageFileError: if the file is missing, damaged, or of a kind that cannot be used.
    """
    with naming_image(path):
        check_pixel_type(path)
        return utils.read_image(path, format=format)


@contextmanager
def naming_image(path: str, image_id=None):
    """Make what goes wrong inside an ImageFileError that names the image.

    Pillow and its decoders raise errors of many kinds for damaged files, most without a file name.

    Args:
        path (str): image file.
        image_id (int or str): its id in the annotation file, if there is one.
    """
    try:
        yield
    except Exception as error:
        name = f"image {path}" if image_id is None else f"image {path} (id {image_id!r})"
        reason = str(error) or type(error).__name__
        if isinstance(error, utils.SizeMismatchError):
            reason += " (width x height, after turning the image as its EXIF orientation says)"
        raise ImageFileError(f"{name} cannot be used: {reason}") from error
