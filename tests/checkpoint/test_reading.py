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
