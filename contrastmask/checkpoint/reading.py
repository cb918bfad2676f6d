"""Reading checkpoint files without running code from them, with errors that say what is wrong."""

import os
import pickle
import zipfile
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import torch

_NUMPY_OBJECTS = {
    "_reconstruct": np.zeros(0).__reduce__()[0],
    "_frombuffer": np.zeros(1).__reduce_ex__(5)[0],
    "scalar": np.float32(0).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}


class UnreadableCheckpointError(ValueError):
    """A file is damaged or is no checkpoint. The text names it and the likely cause."""


def read_torch_file(path, trusted=False):
    """
    Args:
        path (str): a local file written by ``torch.save``.
        trusted (bool): also read Python objects, which can run code.

    Returns:
        object: what the file holds, tensors on the CPU.

    Raises:
        UnreadableCheckpointError: if the file is damaged, is no checkpoint, or holds more than
            tensors and plain containers.
    """
    _check_beginning(path)
    with _reading(path, trusted):
        return torch.load(path, map_location="cpu", weights_only=not trusted)


def check_checksums(path):
    """
    Compare the contents of a .pth file with the checksums in it, which reading alone does not do.

    Args:
        path (str): a local file.

    Raises:
        UnreadableCheckpointError: naming the file, if a part of it has changed since it was
            written. Files without checksums, of other formats, pass.
    """
    if not os.path.isfile(path):
        return
    with _reading(path):
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
    if part:
        raise UnreadableCheckpointError(
            f"checkpoint {path} is damaged: {part} in it is not as it was written"
        )


def read_pickle_file(path, trusted=False):
    """
    Args:
        path (str): a local .pkl file of NumPy arrays, as in Detectron2's model zoo.
        trusted (bool): also read Python objects, which can run code.

    Returns:
        object: what the file holds.

    Raises:
        UnreadableCheckpointError: as :func:`read_torch_file`.
    """
    _check_beginning(path)
    with _reading(path, trusted), open(path, "rb") as f:
        return _ArrayUnpickler(f, trusted).load()


class _ArrayUnpickler(pickle.Unpickler):
    """Builds containers, numbers, strings and NumPy arrays only, unless the file is trusted."""

    def __init__(self, file, trusted):
        super().__init__(file, encoding="latin1")
        self._trusted = trusted

    def find_class(self, module, name):
        if self._trusted:
            return super().find_class(module, name)
        if module.startswith("numpy") and name in _NUMPY_OBJECTS:
            return _NUMPY_OBJECTS[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


@contextmanager
def _reading(path, trusted=False):
    """
    Make an UnreadableCheckpointError of what goes wrong inside, whatever it is: damage can raise
    almost anything. Only that a file is missing or may not be read is no damage.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise UnreadableCheckpointError(_explain(path, error, trusted)) from error


def _check_beginning(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    with open(path, "rb") as f:
        start = f.read(200)
    if not start:
        raise UnreadableCheckpointError(
            f"checkpoint {path} is an empty file: download or copy it again"
        )
    if start.startswith(b"version https://git-lfs"):
        raise UnreadableCheckpointError(
            f"checkpoint {path} is a Git LFS pointer, not the file itself: run 'git lfs pull' "
            "where it was cloned"
        )
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise UnreadableCheckpointError(
            f"checkpoint {path} is an HTML page, not a checkpoint: probably a download page or an "
            "error message was saved under this name. Download the file behind it"
        )


def _explain(path, error, trusted):
    with open(path, "rb") as f:
        start = f.read(4)
    size = os.path.getsize(path)
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if start == b"PK\x03\x04":
        truncated = not _has_end_of_zip(path)
    else:
        words = ("truncated", "unexpected EOF", "Ran out of input", "wrong byte size")
        truncated = isinstance(error, EOFError) or any(w in str(error) for w in words)
    if truncated:
        return (
            f"checkpoint {path} is incomplete: it ends after {size} bytes. Probably a download or "
            f"a copy was cut off; fetch it again ({reason})"
        )
    if start != b"PK\x03\x04" and not start.startswith(b"\x80"):
        return f"checkpoint {path} is not a checkpoint: it begins with {start!r} ({reason})"
    if trusted and isinstance(error, (ImportError, AttributeError)):
        return (
            f"checkpoint {path} holds objects of a Python package that is missing here or has "
            f"another version: install the one it was written with ({reason})"
        )
    if isinstance(error, pickle.UnpicklingError) and not trusted:
        return (
            f"checkpoint {path} holds Python objects beside tensors, which could run code, and is "
            "not read. If you trust its source, keep its tensors only: python "
            f"tools/convert_checkpoint.py --trust-source {path} converted.pth ({reason})"
        )
    return f"checkpoint {path} is damaged: fetch it again ({reason})"


def _has_end_of_zip(path):
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # there is an end, with wrong contents
        return True
