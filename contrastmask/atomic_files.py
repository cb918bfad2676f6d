"""Writing files so that each is complete or not there at all."""

import json
import os
from contextlib import contextmanager, suppress
from typing import IO, Iterator

_SUFFIX = ".unfinished"
# Entries of a JSON list that are text at the same time.
_ENTRIES = 1000


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


def write_json(path: str, content: dict) -> None:
    """
    Write what ``json.dumps`` gives, without having all of it in memory as text; ``json.dump`` does
    not have it either, and is several times slower.

    Args:
        path (str): of a local file.
        content (dict): with str as keys. Lists may be long.

    Raises:
        OSError: as :func:`write_whole`.
    """
    with write_whole(path, "w", encoding="utf-8") as f:
        separator = "{"
        for key, value in content.items():
            f.write(f"{separator}{json.dumps(key)}: ")
            separator = ", "
            if isinstance(value, list):
                f.write("[")
                for start in range(0, len(value), _ENTRIES):
                    text = json.dumps(value[start : start + _ENTRIES])[1:-1]
                    f.write(f", {text}" if start else text)
                f.write("]")
            else:
                f.write(json.dumps(value))
        f.write("}" if content else "{}")


def is_unfinished(name: str) -> bool:
    """Whether a file of this name was not written to its end."""
    return name.endswith(_SUFFIX)
