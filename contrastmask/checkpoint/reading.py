"""Reading checkpoint files without running code from them."""

import pickle
import zipfile
from contextlib import contextmanager

import numpy as np
import torch

# What files of tensors and arrays consist of, beside containers, numbers and strings.
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("torch", "Size"),
    *(("torch._utils", name) for name in ("_rebuild_parameter", "_rebuild_tensor_v2")),
    *(("torch", name) for name, x in vars(torch).items() if isinstance(x, torch.dtype)),
}
_NUMPY_OBJECTS = {  # by their names alone: the modules of some have moved
    "_reconstruct": np.zeros(0).__reduce__()[0],
    "_frombuffer": np.zeros(1).__reduce_ex__(5)[0],
    "scalar": np.float32(0).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}


class UnreadableCheckpointError(ValueError):
    """A file is damaged or is no checkpoint. The text names it."""


def read_torch_file(path: str) -> dict:
    """
    Args:
        path (str): a local file written by ``torch.save``.

    Returns:
        dict: what the file holds, tensors on the CPU.

    Raises:
        UnreadableCheckpointError: if the file is damaged, is no checkpoint, or holds more than
            tensors and plain containers.
    """
    try:
        with _reading(path):
            return _checked(torch.load(path, map_location="cpu", weights_only=True))
    except UnreadableCheckpointError as error:
        try:
            read_tensors(path)
        except UnreadableCheckpointError:
            raise error from None
        raise UnreadableCheckpointError(
            f"checkpoint {path} holds Python objects, which are not read because they can run "
            f"code. To keep its tensors only: python tools/convert_checkpoint.py {path} "
            "converted.pth"
        ) from error


def read_tensors(path: str) -> dict:
    """
    Like :func:`read_torch_file`, for files that also hold Python objects, of whatever package.

    Returns:
        dict: what the file holds; each of these objects is an empty :class:`Placeholder`.
    """
    with _reading(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                if any(name.endswith("constants.pkl") for name in file.namelist()):
                    raise ValueError("it holds a TorchScript program")  # which would be compiled
        # weights_only=True takes no other unpickler; this one is as strict.
        return _checked(
            torch.load(path, map_location="cpu", pickle_module=_TensorsOnly, weights_only=False)
        )


def read_pickle_file(path: str) -> dict:
    """
    Args:
        path (str): a local .pkl file of NumPy arrays, as in Detectron2's model zoo.

    Returns:
        dict: what the file holds, with a :class:`Placeholder` for everything but containers,
        numbers, strings and arrays. Tensors are under "model"; if "matching_heuristics" is True,
        Detectron2 matches their names with the model's.

    Raises:
        UnreadableCheckpointError: as :func:`read_torch_file`.
    """
    with _reading(path), open(path, "rb") as f:
        loaded = _checked(_Unpickler(f, encoding="latin1").load())
    if "model" in loaded:
        return loaded
    return {"model": loaded, "__author__": "Caffe2", "matching_heuristics": True}


def check_checksums(path: str) -> None:
    """
    Compare the contents of a .pth file with the checksums in it, which reading alone does not do.

    Args:
        path (str): a local file.

    Raises:
        UnreadableCheckpointError: naming the file, if a part of it has changed since it was
            written. Files without checksums, of other formats, pass.
    """
    with _reading(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                part = file.testzip()
            if part:
                raise ValueError(f"{part} in it is not as it was written")


def _checked(loaded):
    if not isinstance(loaded, dict):
        raise TypeError(f"it holds a {type(loaded).__name__}, not a dict of tensors")
    return loaded


class Placeholder:
    """Stands for an object whose class is not loaded; accepts what a pickle does to one."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    extend = add = append


class _Unpickler(pickle.Unpickler):
    """Loads no class or function but those of tensors and arrays, so a file cannot run code."""

    def find_class(self, module, name):
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module.partition(".")[0] == "numpy" and name in _NUMPY_OBJECTS:
            return _NUMPY_OBJECTS[name]
        return Placeholder


class _TensorsOnly:
    """In place of the module `pickle` in ``torch.load``."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file, **kwargs):
        return _Unpickler(file, **kwargs).load()


@contextmanager
def _reading(path):
    """
    Make an UnreadableCheckpointError of what goes wrong inside, whatever it is: damage can raise
    almost anything. Only that a file is missing or may not be read is no damage.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UnreadableCheckpointError(
            f"checkpoint {path} is damaged, incomplete or no checkpoint ({reason})"
        ) from error
