import errno
import os
import pickle
import random
from functools import partial

import numpy as np
import pytest
import torch

from contrastmask.checkpoint.reading import (
    Placeholder,
    UnreadableCheckpointError,
    check_checksums,
    read_pickle_file,
    read_tensors,
    read_torch_file,
)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_code_is_run(tmp_path):
    trace = tmp_path / "trace"
    content = {"model": {"w": torch.ones(2)}, "meta": Malicious(trace)}
    for new_format in (True, False):
        path = str(tmp_path / "model.pth")
        torch.save(content, path, _use_new_zipfile_serialization=new_format)
        with pytest.raises(ValueError, match=r"model\.pth.*objects.*tools/convert_checkpoint"):
            read_torch_file(path)
        got = read_tensors(path)
        assert torch.equal(got["model"]["w"], torch.ones(2))
        assert isinstance(got["meta"], Placeholder)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": Malicious(trace)}))
    assert isinstance(read_pickle_file(str(path))["model"], Placeholder)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), "the file is harmless"


class Everything(dict):
    """Pickled with state, constructor arguments, and items of all kinds."""

    def __init__(self, items=()):
        super().__init__(items)
        self.attribute = "state"

    def __reduce__(self):
        return Everything, ((),), {"attribute": 3}, iter([1, 2]), iter({"a": 1, "b": 2}.items())


class Slots(set):
    __slots__ = ("value",)

    def __init__(self, items=()):
        super().__init__(items)
        self.value = 3


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_objects_become_placeholders(tmp_path, protocol):
    objects = {
        "everything": Everything(),
        "slots": Slots([1, 2]),
        "function": os.mkdir,
        "method": Everything().keys,
        "generator": np.random.RandomState(0),
        "path": tmp_path,
        "set": {1, 2},
        "array of objects": np.array([Everything(), None]),
    }
    content = {"model": {"w": np.ones(2)}, **objects}
    path = tmp_path / "a.pkl"
    del content["method"]  # dict methods have no pickle
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    got = read_pickle_file(str(path))
    assert got.keys() == content.keys()
    assert np.array_equal(got["model"]["w"], np.ones(2))
    assert got["array of objects"].shape == (2,)
    for name in objects.keys() - {"method", "function", "array of objects", "set"}:
        assert type(got[name]) is Placeholder and not vars(got[name]), name


def test_tensors_of_all_kinds(tmp_path):
    """As `torch.load` reads them."""
    whole = torch.arange(12.0).view(3, 4)
    content = {
        "view": whole[1:, ::2],
        "half": whole.half(),
        "bfloat16": whole.bfloat16(),
        "bool": whole > 3,
        "parameter": torch.nn.Parameter(whole),
        "empty": torch.zeros(0, 2),
        "dtype": torch.float64,
        "size": torch.Size([3]),
        "float": 0.5,
        "array": np.arange(3),
    }
    torch.save({**content, "object": Everything()}, tmp_path / "a.pth")
    got = read_tensors(str(tmp_path / "a.pth"))
    for name, value in content.items():
        assert type(got[name]) is type(value), name
        if torch.is_tensor(value):
            assert got[name].dtype == value.dtype and torch.equal(got[name], value), name
        else:
            assert np.array_equal(got[name], value), name


def test_programs_are_refused(tmp_path):
    torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1)).save(str(tmp_path / "a.pth"))
    for read in (read_torch_file, read_tensors):
        with pytest.raises(UnreadableCheckpointError, match=r"a\.pth.*TorchScript"):
            read(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_of_arrays(tmp_path, protocol):
    data = {"model": {"w": np.random.rand(3, 2), "n": np.float32(2)}, "__author__": "x"}
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    got = read_pickle_file(str(path))
    assert np.array_equal(got["model"]["w"], data["model"]["w"]) and got["model"]["n"] == 2
    assert got["__author__"] == "x"
    path.write_bytes(pickle.dumps(data, protocol=protocol)[:-20])
    with pytest.raises(ValueError, match=r"model\.pkl is damaged"):
        read_pickle_file(str(path))


def as_pickle(content, path):
    # No arrays: NumPy's own types, and with them other tests, suffer from damaged ones.
    content = {"model": {k: v.tolist() for k, v in content["model"].items()}}
    path.write_bytes(pickle.dumps(content))


def read_zip_file(path):
    check_checksums(path)
    return read_torch_file(path)


@pytest.mark.filterwarnings("ignore")  # PyTorch warns about unknown protocols
@pytest.mark.parametrize(
    "write, read",
    [
        (torch.save, read_zip_file),
        (torch.save, read_torch_file),
        (partial(torch.save, _use_new_zipfile_serialization=False), read_torch_file),
        (as_pickle, read_pickle_file),
    ],
    ids=["zip, checksums", "zip", "old format", "pickle"],
)
def test_any_damage_is_called_damage(tmp_path, write, read):
    """One byte that changed, or the beginning only."""
    path = tmp_path / "file"
    write({"model": {"weight": torch.rand(3, 2), "bias": torch.rand(3)}}, path)
    whole = path.read_bytes()
    rng = random.Random(0)
    damaged = [whole[: rng.randrange(len(whole))] for _ in range(20)]
    for at in rng.choices(range(len(whole)), k=250):
        other = bytes([whole[at] ^ rng.choice([1, 2, 4, 8, 16, 32, 64, 128, 255])])
        damaged.append(whole[:at] + other + whole[at + 1 :])
    errors = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            read(str(path))
        except UnreadableCheckpointError as error:
            assert str(path) in str(error)
            errors += 1
    assert errors > 40


def test_a_missing_file_or_permission_is_no_damage(tmp_path, monkeypatch):
    for read in (read_torch_file, read_pickle_file, read_tensors):
        with pytest.raises(FileNotFoundError, match="b.pth"):
            read(str(tmp_path / "b.pth"))

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    torch.save({}, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(PermissionError):
        read_torch_file(str(tmp_path / "a.pth"))
