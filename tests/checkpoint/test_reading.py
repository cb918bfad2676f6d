import os
import pickle

import numpy as np
import pytest
import torch

from contrastmask.checkpoint.reading import read_pickle_file, read_torch_file


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "HTML page"),
        (b"not a checkpoint at all", "is not a checkpoint"),
    ],
)
@pytest.mark.parametrize("read", [read_torch_file, read_pickle_file])
def test_other_things_under_this_name(tmp_path, content, message, read):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.pth.*{message}"):
        read(str(path))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        read_torch_file(str(tmp_path / "nothing.pth"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.99])
def test_truncated_file(tmp_path, zipped, fraction):
    path = tmp_path / "model.pth"
    torch.save({"a": torch.rand(1000)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ValueError, match=r"model\.pth is incomplete.*cut off"):
        read_torch_file(str(path))


def test_damaged_file(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"a": torch.rand(1000)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"data.pkl") + 8 : content.index(b"data.pkl") + 40] = bytes(32)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pth"):
        read_torch_file(str(path))


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
    read_torch_file(str(path), trusted=True)
    assert trace.exists()


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
