"""Shared pieces of the tests."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

REFERENCE_DIR = Path(__file__).parent / "reference"


@pytest.fixture
def load_reference():
    """Function: file name -> dict of float32, bool or int64 tensors measured with authors' code."""

    def load(name):
        with np.load(REFERENCE_DIR / name) as data:
            return {k: torch.from_numpy(data[k]) for k in data if data[k].dtype.kind != "U"}

    return load


@pytest.fixture
def fill():
    """Function: (name, shape, scale) -> the made-up tensor of that name in [-scale, scale)."""

    def make(name, shape, scale):
        generator = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
        values = generator.random(tuple(shape), np.float32) * 2 - 1
        return torch.from_numpy(values * np.float32(scale))

    return make


@pytest.fixture
def fill_parameters(fill):
    """
    Function: (module, prefix, official names) sets parameters and BatchNorm statistics of a module
    as the reference had them. The names map our parameter names to the authors'.
    """

    def set_all(module, prefix, official_name):
        for name, value in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            official = official_name(name)
            full_name = prefix + official
            if value.dim() >= 2:
                fan_in = value[0].numel()
                new = fill(full_name, value.shape, (6 / fan_in) ** 0.5)
            elif official.endswith("bn.weight") or official.endswith("running_var"):
                new = 1 + fill(full_name, value.shape, 0.2)
            elif official.endswith("running_mean"):
                new = fill(full_name, value.shape, 0.1)
            else:
                new = fill(full_name, value.shape, 0.05)
            value.copy_(new)

    return set_all


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    np.random.seed(0)
