"""The same seed gives the same losses, to the last bit."""

import random

import numpy as np
import pytest
import small_model
import torch

from contrastmask.engine import Trainer, load_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproducible_data")
    small_model.write_data(folder, num_images=12)
    return small_model.options(folder, "reproducible_data")


@pytest.fixture
def strict():
    """Errors where PyTorch knows that an operation is not deterministic."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def losses(opts, folder, iterations, initial_seed=1):
    """All losses of all iterations: {name: [(value, iteration)]}."""
    opts = [*opts, "SOLVER.MAX_ITER", iterations, "TEST.EVAL_PERIOD", 0, "OUTPUT_DIR", str(folder)]
    cfg = load_config(small_model.CONFIG_FILE, opts)
    torch.manual_seed(initial_seed)  # what the setup does, for the weights
    trainer = Trainer(cfg)
    # The state of the generators at this point must not matter.
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(random.SystemRandom().randrange(2**32))
    trainer.test = lambda cfg, model: {}
    trainer.train()
    histories = trainer.storage.histories().items()
    return {name: h.values() for name, h in histories if "loss" in name}


def test_same_losses(data, tmp_path, strict):
    """With other states of the generators before, and with another number of workers."""
    small = ["SEED", "5", "SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(48,64)"]
    small += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"]
    first = losses([*data, *small], tmp_path / "1", 4)
    assert {"loss_mask", "loss_contrastive", "total_loss"} <= set(first)
    assert len({value for value, _ in first["total_loss"]}) == 4
    second = losses([*data, *small, "DATALOADER.NUM_WORKERS", "1"], tmp_path / "2", 4)
    assert first == second
    other = losses([*data, *small, "SEED", "6"], tmp_path / "3", 1)
    assert other["total_loss"][0] != first["total_loss"][0]


@pytest.mark.slow
def test_fifty_iterations_of_the_quickstart(data, tmp_path):
    """With the model of the quickstart, from random weights, and small images."""
    where = data[-6:]  # the datasets
    small = ["MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TRAIN", "(96,128)", "MODEL.DEVICE", "cpu"]
    first, second = (losses([*where, *small], tmp_path / x, 50) for x in ("1", "2"))
    assert [iteration for _, iteration in first["total_loss"]] == list(range(50))
    assert first == second
