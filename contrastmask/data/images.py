"""Image files: finding them, reading them, and errors that name the image."""

import os
import re
import unicodedata
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import takewhile
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union
from urllib.parse import unquote

import numpy as np
from detectron2.data.detection_utils import (
    SizeMismatchError,
    _apply_exif_orientation,
    convert_PIL_to_numpy,
)
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image

__all__ = [
    "ImageFileError",
    "ImageFolder",
    "ImageHeader",
    "ImageReader",
    "naming_image",
    "read_headers",
]

# EXIF orientations that swap height and width.
_TURNED = (5, 6, 7, 8)
_NUM_THREADS = 16  # which wait for disks
# Label Studio puts such a prefix before the names of uploaded files.
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")


class ImageFileError(ValueError):
    """An image file that cannot be used; says which and why."""


class ImageHeader(NamedTuple):
    """
    size (tuple[int, int]): height and width in pixels, after turning the image as its EXIF
        orientation says; so Detectron2 and this project read it.
    orientation (int): of EXIF; 1 for an image that is not turned.
    mode (str): Pillow's name of the kind of its pixels.
    """

    size: Tuple[int, int]
    orientation: int
    mode: str


def read_headers(paths: Sequence[str]) -> List[Union[ImageHeader, ImageFileError]]:
    """
    Args:
        paths: image files, of which only the headers are read, several at a time.

    Returns:
        The header of each, or why it cannot be read: missing, damaged, or no image.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # headers are small
    try:
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            return list(pool.map(_read_header, paths))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _read_header(path: str) -> Union[ImageHeader, ImageFileError]:
    try:
        with naming_image(path), PathManager.open(path, "rb") as f, Image.open(f) as image:
            width, height = image.size
            orientation = _exif_orientation(image)
            size = (width, height) if orientation in _TURNED else (height, width)
            return ImageHeader(size, orientation, image.mode)
    except ImageFileError as error:
        return error


def _exif_orientation(image: Image.Image) -> int:
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1  # Pillow would read all pixels to look for more
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as Detectron2 does for damaged EXIF data
        return 1


class ImageReader:
    """Reads image files as a model takes them."""

    def __init__(self, format: str, gray_range: Sequence[float] = (), max_pixels: int = 0):
        """
        Args:
            format (str): as in Detectron2: "RGB", "BGR", ...
            gray_range (sequence[float]): the levels of black and white in images with gray levels
                of more than 8 bits; empty to refuse these.
            max_pixels (int): of an image; 0 for Pillow's limit.
        """
        self.format = format
        self.gray_range = tuple(gray_range)
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg, format: Optional[str] = None) -> "ImageReader":
        """
        Args:
            cfg (CfgNode): ``INPUT.FORMAT``, ``GRAY_RANGE`` and ``MAX_IMAGE_PIXELS`` are used.
            format (str): another format than the config's.

        Raises:
            ValueError: for a range that is none; it names the key.
        """
        gray_range = cfg.INPUT.GRAY_RANGE
        if gray_range and not (len(gray_range) == 2 and gray_range[0] != gray_range[1]):
            raise ValueError(f"INPUT.GRAY_RANGE is {gray_range}: give two levels, black and white")
        return cls(format or cfg.INPUT.FORMAT, gray_range, cfg.INPUT.MAX_IMAGE_PIXELS)

    def __call__(self, path: str, image_id=None) -> np.ndarray:
        """
        Args:
            path (str): image file.
            image_id (int or str): its id in the annotation file, if there is one.

        Returns:
            array: (H, W, 3) uint8, turned as the image's EXIF orientation says.

        Raises:
            ImageFileError: if the file is missing, damaged, or of a kind that cannot be used.
        """
        with naming_image(path, image_id):
            with self._pixel_limit(), PathManager.open(path, "rb") as f, Image.open(f) as image:
                return self.convert(image)

    def convert(self, image: Image.Image) -> np.ndarray:
        """As :meth:`__call__`, for an image that is open.

        Raises:
            ValueError: for gray levels of more than 8 bits without a range.
        """
        image = _apply_exif_orientation(image)
        if _has_deep_levels(image.mode):
            if not self.gray_range:
                raise ValueError(_deep_levels_refused(image.mode))
            black, white = self.gray_range
            levels = (np.asarray(image, dtype=np.float64) - black) / (white - black)
            image = Image.fromarray(np.rint(levels.clip(0, 1) * 255).astype(np.uint8))
        return convert_PIL_to_numpy(image, self.format)

    def problem_of(self, header: ImageHeader) -> str:
        """Why an image with this header cannot be used; empty if nothing is wrong with it."""
        if _has_deep_levels(header.mode) and not self.gray_range:
            return _deep_levels_refused(header.mode)
        limit = self.max_pixels or 2 * (Image.MAX_IMAGE_PIXELS or np.inf)
        if header.size[0] * header.size[1] > limit:
            return f"it has more than {limit} pixels. Raise INPUT.MAX_IMAGE_PIXELS if you trust it"
        return ""

    @contextmanager
    def _pixel_limit(self):
        usual = Image.MAX_IMAGE_PIXELS
        try:
            if self.max_pixels:
                Image.MAX_IMAGE_PIXELS = self.max_pixels / 2  # Pillow refuses from twice as many
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                yield
        except Image.DecompressionBombError:
            raise ValueError(
                "it has more pixels than allowed. Raise INPUT.MAX_IMAGE_PIXELS if you trust it"
            ) from None
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def _has_deep_levels(mode: str) -> bool:
    """Whether Pillow would clip pixels to 255: gray levels of 16 and 32 bits."""
    return mode == "F" or mode.startswith("I")


def _deep_levels_refused(mode: str) -> str:
    return (
        f"its gray levels have more than 8 bits (Pillow's mode {mode}), and which of them are "
        "black and white is not known. Set INPUT.GRAY_RANGE to these two levels, such as [0, "
        "65535], or convert it to 8 bits"
    )


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
    except ImageFileError:
        raise
    except Exception as error:
        name = f"image {path}" if image_id is None else f"image {path} (id {image_id!r})"
        reason = str(error) or type(error).__name__
        if isinstance(error, SizeMismatchError):
            reason += " (width x height, after turning the image as its EXIF orientation says)"
        raise ImageFileError(f"{name} cannot be used: {reason}") from error


class ImageFolder:
    """Finds the files that an annotation file names, also where it names them in a foreign way."""

    def __init__(self, root: str):
        self.root = root
        self._listings: Dict[str, frozenset] = {}
        self._by_last_part: Optional[Dict[str, List[str]]] = None

    def find(self, name: str) -> Tuple[Optional[str], str]:
        """
        Args:
            name (str): "file_name" of an image.

        Returns:
            str or None: path of the file. If there is none of this name, it is the one file in the
            folder, or below it, with the same last part: after backslashes or a slash, without URL
            escapes, query, or Label Studio's prefix, in upper or lower case, and however accents
            are encoded. None if there is none, or more than one that fits equally well.
            str: "" for the very name, else how the file was found.
        """
        if self._exists(name):
            return os.path.join(self.root, name), ""
        for other in dict.fromkeys([name.replace("\\", "/"), unquote(name.replace("\\", "/"))]):
            if self._exists(other):
                return os.path.join(self.root, other), "file name with backslashes or URL escapes"
        last = unquote(re.split(r"[/\\]|\?d=", name)[-1])
        paths: List[str] = []
        for other in (last, last.split("?")[0], _UPLOAD_PREFIX.sub("", last, count=1)):
            paths = paths or self._files().get(_without_case(other), [])
        if len(paths) > 1:  # the folders before it tell, or upper and lower case
            wanted = unquote(name.replace("\\", "/")).split("/")
            paths = _best(paths, lambda path: _common_end(path.split(os.sep), wanted))
            paths = _best(paths, lambda path: os.path.basename(path) == last)
        found = paths[0] if len(paths) == 1 else None
        return found, "image found by the last part of its file name"

    def _exists(self, name: str) -> bool:
        """Lists each folder once, which is faster than looking up many files."""
        folder, base = os.path.split(name)
        if folder not in self._listings:
            path = os.path.join(self.root, folder)
            self._listings[folder] = frozenset(os.listdir(path) if os.path.isdir(path) else ())
        return base in self._listings[folder]

    def _files(self) -> Dict[str, List[str]]:
        if self._by_last_part is None:
            self._by_last_part = defaultdict(list)
            for folder, _, files in os.walk(self.root):
                for file in files:
                    self._by_last_part[_without_case(file)].append(os.path.join(folder, file))
        return self._by_last_part


def _best(paths: List[str], score: Callable[[str], int]) -> List[str]:
    scores = [score(path) for path in paths]
    return [path for path, value in zip(paths, scores) if value == max(scores)]


def _common_end(a: List[str], b: List[str]) -> int:
    """How many of the last parts of two paths are equal."""
    pairs = zip(reversed(a), reversed(b))
    return len(list(takewhile(lambda x: _without_case(x[0]) == _without_case(x[1]), pairs)))


def _without_case(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()
