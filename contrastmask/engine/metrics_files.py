"""Files of training metrics where a run is interrupted or the disk is full."""

import itertools
import json
import logging
import os
import shutil

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from ..atomic_files import write_whole
from ..output import describe

logger = logging.getLogger(__name__)


class ContinueMetrics(HookBase):
    """
    When a training is resumed, removes from ``metrics.json`` what the interrupted run wrote after
    the checkpoint, and a line that it could not finish. These iterations are written again.

    When a training begins, moves what another one wrote to ``metrics_earlier_<number>.json``.
    """

    def __init__(self, path):
        """
        Args:
            path (str): of ``metrics.json``; need not exist.
        """
        self._path = path

    def before_train(self):
        start = self.trainer.start_iter
        if not comm.is_main_process() or not os.path.isfile(self._path):
            return
        if start > 0:
            removed = remove_metrics_from(self._path, start)
            if removed:
                logger.info(
                    f"Removed {removed} lines from {self._path}: training goes on from iteration "
                    f"{start}, before them"
                )
        elif os.path.getsize(self._path) > 0:
            moved = move_metrics_aside(self._path)
            logger.info(f"Moved the metrics of an earlier training from {self._path} to {moved}")


def remove_metrics_from(path, iteration):
    """
    Cut off the end of a file of metrics, one JSON object a line: damaged lines, and those of
    `iteration` and later. An earlier run that the file begins with stays.

    Args:
        path (str):
        iteration (int):

    Returns:
        int: number of lines removed.
    """
    with open(path, "rb") as f:
        lines = f.readlines()
    keep = len(lines)
    while keep and not _is_before(lines[keep - 1], iteration):
        keep -= 1
    # Not a new file: a writer has this one open.
    os.truncate(path, sum(map(len, lines[:keep])))
    return len(lines) - keep


def move_metrics_aside(path):
    """
    Empty a file of metrics, and keep its content in a new file beside it.

    Args:
        path (str):

    Returns:
        str: path of the new file, ``<name>_earlier_<number>.json``.
    """
    stem, extension = os.path.splitext(path)
    numbered = (f"{stem}_earlier_{number}{extension}" for number in itertools.count(1))
    moved = next(x for x in numbered if not os.path.exists(x))
    with open(path, "rb") as f, write_whole(moved, "wb") as copy:
        shutil.copyfileobj(f, copy)
    os.truncate(path, 0)  # as above
    return moved


def _is_before(line, iteration):
    try:
        return line.endswith(b"\n") and json.loads(line)["iteration"] < iteration
    except (ValueError, KeyError, TypeError):
        return False


class LenientWriter(EventWriter):
    """Another writer, given up with a message when it cannot write. Training goes on."""

    def __init__(self, writer, folder):
        """
        Args:
            writer (EventWriter):
            folder (str): where it writes, to be named in the message.
        """
        self._writer = writer
        self._folder = folder

    def write(self):
        self._attempt("write")

    def close(self):
        self._attempt("close")

    def _attempt(self, action):
        if self._writer is None:
            return
        try:
            getattr(self._writer, action)()
        except OSError as error:
            name = f"{type(self._writer).__name__}: metrics in {self._folder}"
            logger.error(f"{describe(name, error)}. Training goes on without them")
            self._writer = None
