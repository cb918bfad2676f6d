import errno
import os
import pickle
import random
from functools import partial

import numpy as np
import pytest
import torch

from contrastmask.checkpoint.reading import (
    UnreadableCheckpointError,
    check_checksums,
    read_pickle_file,
    read_torch_file,
)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_code_is_run(tmp_path):
    path, trace = tmp_path / "model.pth", tmp_path / "trace"
    torch.save({"state_dict": {}, "meta": Malicious(trace)}, path)
    with pytest.raises(ValueError, match=r"model\.pth.*objects.*convert_checkpoint.*trust-source"):
        read_torch_file(str(path))
    assert not trace.exists()
    path.with_suffix(".pkl").write_bytes(pickle.dumps({"model": Malicious(trace)}))
    with pytest.raises(ValueError, match=r"model\.pkl.*mkdir"):
        read_pickle_file(str(path.with_suffix(".pkl")))
    assert not trace.exists()
    for read, suffix in ((read_torch_file, ".pth"), (read_pickle_file, ".pkl")):
        read(str(path.with_suffix(suffix)), trusted=True)
        trace.rmdir()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_of_arrays(tmp_path, protocol):
    data = {"model": {"w": np.random.rand(3, 2), "n": np.float32(2)}, "__author__": "x"}
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    got = read_pickle_file(str(path))
    assert np.array_equal(got["model"]["w"], data["model"]["w"]) and got["model"]["n"] == 2
    path.write_bytes(pickle.dumps(data, protocol=protocol)[:-20])
    with pytest.raises(ValueError, match="incomplete"):
        read_pickle_file(str(path))


def as_pickle(content, path):
    # No arrays: NumPy's own types, and with them other tests, suffer from damaged ones.
    path.write_bytes(pickle.dumps({k: v.tolist() for k, v in content["model"].items()}))


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


def test_a_missing_permission_is_no_damage(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    torch.save({}, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(PermissionError):
        read_torch_file(str(tmp_path / "a.pth"))
    with pytest.raises(FileNotFoundError, match="b.pth"):
        read_torch_file(str(tmp_path / "b.pth"))


def test_objects_of_a_missing_package(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02cno_such_package\nThing\n.")
    with pytest.raises(UnreadableCheckpointError, match="a.pkl.*package that is missing.*install"):
        read_pickle_file(str(tmp_path / "a.pkl"), trusted=True)
