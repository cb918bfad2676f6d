"""Random numbers that follow from a key, such as (seed, iteration), and from nothing before it."""

import random
from contextlib import contextmanager

import numpy as np
import torch

# What random numbers are for: the first number of every key.
FOR_SAMPLER, FOR_WORKERS, FOR_EXAMPLE, FOR_STEP = range(4)


def seed_everything(*key):
    """
    Seed Python, NumPy and PyTorch, on all devices.

    Args:
        key (int): numbers >= 0. Other keys give independent random numbers.
    """
    words = _words(key)
    random.seed(words[0])
    np.random.seed(words[1])
    torch.manual_seed(words[2])


@contextmanager
def seeded(*key):
    """
    Context with random numbers, on the CPU, that depend on the key only. Afterwards Python, NumPy
    and PyTorch go on as if nothing had been drawn.

    Args:
        key (int): as in :func:`seed_everything`.
    """
    words = _words(key)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2])
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _words(key):
    return np.random.SeedSequence(key).generate_state(3).tolist()
