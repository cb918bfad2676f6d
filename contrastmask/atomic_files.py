"""Writing files so that each is complete or not there at all."""

import os
from contextlib import contextmanager, suppress
from typing import IO, Iterator

_SUFFIX = ".unfinished"


@contextmanager
def write_whole(path: str, mode: str, **kwargs) -> Iterator[IO]:
    """
    Context with a file that takes its name when it is complete and on the disk. Until then, and
    after an error, a file that already has the name stays as it was.

    Args:
        path (str): of a local file.
        mode (str): "w" or "wb".
        kwargs: as for ``open``.

    Raises:
        OSError: if the file cannot be written, with `path` as its file name.
    """
    unfinished = path + _SUFFIX
    try:
        with open(unfinished, mode, **kwargs) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())  # or the name could reach the disk before the content
        os.replace(unfinished, path)
    except BaseException as error:
        with suppress(OSError):
            os.remove(unfinished)
        cause = error  # torch.save makes a RuntimeError of it
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None or cause.filename not in (None, unfinished):
            raise
        raise OSError(cause.errno, cause.strerror, path) from error


def is_unfinished(name: str) -> bool:
    """Whether a file of this name was not written to its end."""
    return name.endswith(_SUFFIX)
