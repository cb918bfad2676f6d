"""Writing files so that each is there as a whole or not at all."""

import os
import re
from contextlib import contextmanager

_SUFFIX = ".unfinished"


class AtomicFiles:
    """
    A path manager whose local files, if opened with mode "w" or "wb" in a ``with`` statement, take
    their name when they are complete and safely on the disk. Everything else it leaves to another
    path manager.
    """

    def __init__(self, path_manager):
        """
        Args:
            path_manager (PathManager): of iopath or Detectron2.
        """
        self._path_manager = path_manager

    def __getattr__(self, name):
        return getattr(self._path_manager, name)

    def open(self, path, mode="r", **kwargs):
        """As in iopath."""
        if mode in ("w", "wb") and "://" not in path:
            return write_whole(path, mode, **kwargs)
        return self._path_manager.open(path, mode, **kwargs)


def remove_unfinished(folder, pattern):
    """
    Remove what a process left that died while it wrote.

    Args:
        folder (str):
        pattern (str): regular expression of the names that its files were to take. Others stay:
            another process may be writing them.

    Returns:
        list[str]: paths of the removed files.
    """
    if not os.path.isdir(folder):
        return []
    unfinished = re.compile(f"(?:{pattern}){re.escape(_SUFFIX)}")
    found = [os.path.join(folder, x) for x in os.listdir(folder) if unfinished.fullmatch(x)]
    for path in found:
        os.remove(path)
    return found


@contextmanager
def write_whole(path, mode, **kwargs):
    """
    Context with a file that takes its name when it is complete and safely on the disk.

    Args:
        path (str): of a local file.
        mode (str): "w" or "wb".
        kwargs: as for ``open``.

    Yields:
        file
    """
    unfinished = path + _SUFFIX
    try:
        with open(unfinished, mode, **kwargs) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(unfinished, path)
    except BaseException:
        if os.path.exists(unfinished):
            os.remove(unfinished)
        raise
    _sync_folder(os.path.dirname(path) or ".")


def is_unfinished(name):
    """Whether a file of this name (str) is one that was not written to its end."""
    return name.endswith(_SUFFIX)


def _sync_folder(folder):
    """Make a new name in a folder survive a power failure."""
    if os.name == "nt":  # cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
