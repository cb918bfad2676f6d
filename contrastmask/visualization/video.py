"""Videos in and out by OpenCV: files, cameras and windows. Frames are RGB."""

import os
from contextlib import contextmanager
from typing import Iterator, Optional

import cv2
import numpy as np

__all__ = ["Video", "VideoFile", "Window"]

# By the end of a file's name: codecs that OpenCV's builds have. The first is for other outputs.
_CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v"}
_USUAL_RATE = 25.0  # frames a second, of a source that does not say
_ESCAPE = 27


class Video:
    """The frames of a file or of a camera, (H, W, 3) uint8; a context manager.

    Attributes:
        rate (float): frames a second.
        num_frames (int or None): None where it is not known.
        num_read (int): frames so far.
    """

    def __init__(self, capture: cv2.VideoCapture, num_frames: Optional[int] = None):
        self._capture = capture
        rate = capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else _USUAL_RATE
        self.num_frames = num_frames if num_frames and num_frames > 0 else None
        self.num_read = 0

    @classmethod
    def of_file(cls, path: str) -> "Video":
        """Raises FileNotFoundError or ValueError for a file that cannot be read."""
        if not os.path.isfile(path):
            raise FileNotFoundError(f"There is no video file {path}")
        with _quiet():
            capture = cv2.VideoCapture(path)
        if not capture.isOpened():
            raise ValueError(f"{path} is no video that OpenCV can read")
        return cls(capture, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    @classmethod
    def of_camera(cls, number: int = 0) -> "Video":
        """Raises ValueError if there is none."""
        with _quiet():
            capture = cv2.VideoCapture(number)
        if not capture.isOpened():
            raise ValueError(f"OpenCV cannot open camera {number}")
        return cls(capture)

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            is_read, frame = self._capture.read()
            if not is_read:
                return
            self.num_read += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_) -> None:
        self._capture.release()


class VideoFile:
    """A video that is written; a context manager.

    Attributes:
        path (str): of the file.
    """

    def __init__(self, path: str, source: str, rate: float):
        """
        Args:
            path: a file that ends like a video, else a folder for one.
            source: file that the frames come from, which names the file in a folder.
            rate: frames a second.

        Raises:
            ValueError: if the output is the source.
        """
        if os.path.splitext(path)[1].lower() not in _CODECS or os.path.isdir(path):
            stem = os.path.splitext(os.path.basename(source))[0]
            path = os.path.join(path, stem + next(iter(_CODECS)))
        if os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
            raise ValueError(f"The output is the video itself: {path}")
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        self.path = path
        self._rate = rate
        self._writer: Optional[cv2.VideoWriter] = None

    def show(self, frame: np.ndarray) -> bool:
        """
        Add a frame (H, W, 3), all of one size; returns True: go on.

        Raises:
            ValueError: if the file cannot be written.
        """
        if self._writer is None:
            codec = _CODECS[os.path.splitext(self.path)[1].lower()]
            size = frame.shape[1], frame.shape[0]
            fourcc = cv2.VideoWriter_fourcc(*codec)
            with _quiet():
                self._writer = cv2.VideoWriter(self.path, fourcc, self._rate, size)
        if not self._writer.isOpened():
            raise ValueError(
                f"OpenCV cannot write {self.path}: the folder, or the codec of its kind "
                f"({', '.join(_CODECS)}) is missing"
            )
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        return True

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_) -> None:
        if self._writer is not None:
            self._writer.release()


class Window:
    """A window on the screen; a context manager."""

    def __init__(self, title: str):
        self._title = title

    def show(self, frame: np.ndarray) -> bool:
        """
        Show a frame (H, W, 3); returns whether to go on: False after Esc.

        Raises:
            ValueError: if OpenCV has no windows here.
        """
        try:
            cv2.imshow(self._title, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            return cv2.waitKey(1) != _ESCAPE
        except cv2.error:
            raise ValueError(
                "OpenCV cannot open a window here (no display, or opencv-python-headless): give "
                "--output"
            ) from None

    def __enter__(self) -> "Window":
        return self

    def __exit__(self, *_) -> None:
        try:
            cv2.destroyAllWindows()
        except cv2.error:  # there never was one
            pass


@contextmanager
def _quiet() -> Iterator[None]:
    """Let errors speak for OpenCV and FFmpeg, which write to the terminal."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
