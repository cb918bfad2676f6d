"""A training that is killed again and again ends as if nothing had happened."""

import json
import os
import subprocess
import sys

import interruption
import pytest
import small_model
import torch

from contrastmask.data import build_training_loader
from contrastmask.engine import Trainer, load_config, seed_steps

KINDS = ["training", "writing", "training", "training"]


def train_twice(folder, kills, *opts):
    """Train undisturbed and with kills; returns the two folders and what the kills met."""
    small_model.write_data(folder)
    whole, killed = folder / "whole", folder / "killed"
    command = [sys.executable, interruption.__file__, str(folder), str(whole), str(killed)]
    command += ["--kills", ",".join(kills), *opts]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return whole, killed, json.loads(done.stdout.splitlines()[-1])


def values(state, name=""):
    """All tensors and numbers of a checkpoint by their place in it."""
    if isinstance(state, (dict, list, tuple)):
        pairs = state.items() if isinstance(state, dict) else enumerate(state)
        return {k: v for key, x in pairs for k, v in values(x, f"{name}/{key}").items()}
    return {name: state}


def assert_same_checkpoint(one, two):
    one, two = (values(torch.load(x / "model_final.pth", weights_only=True)) for x in (one, two))
    assert one.keys() == two.keys()
    assert any("/optimizer/state/" in name for name in one)
    for name, value in one.items():
        same = torch.equal(value, two[name]) if torch.is_tensor(value) else value == two[name]
        assert same, name


def iterations(folder):
    lines = (folder / "metrics.json").read_text().splitlines()
    return [json.loads(line)["iteration"] for line in lines]


def test_killed_twice(tmp_path):
    """With the same results, to the last bit, as without. Processes are forked to save time."""
    opts = ["--fork", "SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "2"]
    whole, killed, met = train_twice(tmp_path, ["writing", "training"], *opts)
    assert [x["kind"] for x in met] == ["writing", "training"]
    assert met[0] == {**met[0], "writing": ["model_0000001.pth.unfinished"], "last": None}
    assert_same_checkpoint(whole, killed)
    assert iterations(whole) == iterations(killed)
    assert not list(killed.glob("*.unfinished"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_killed_twenty_times(tmp_path, workers):
    """Started anew each time; the data loader has no or one process of its own."""
    opts = ["--longest-delay", "9", "SOLVER.MAX_ITER", "90", "SOLVER.CHECKPOINT_PERIOD", "3"]
    opts += ["DATALOADER.NUM_WORKERS", workers]
    whole, killed, met = train_twice(tmp_path, [*KINDS, "starting"] * 4, *opts)
    assert len(met) == 20, "the training ended before the last kill"
    assert any(x["writing"] for x in met)
    assert_same_checkpoint(whole, killed)
    assert iterations(whole) == iterations(killed)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume_data")
    small_model.write_data(folder)
    return folder


def config(data, output, *opts):
    name = f"resume data {data.name}"
    opts = [*small_model.options(data, name), "INPUT.MIN_SIZE_TRAIN", "(48,)", *opts]
    opts += ["SOLVER.IMS_PER_BATCH", "1", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"]
    return load_config(small_model.CONFIG_FILE, [*opts, "OUTPUT_DIR", str(output)])


def test_a_random_seed_is_kept(data, tmp_path):
    cfg = config(data, tmp_path, "SEED", "-1")
    trainer = Trainer(cfg)
    seeds = trainer.state_dict()["hooks"]["SeedSteps"]
    trainer.checkpointer.save("model_0000001")
    resumed = Trainer(cfg)
    assert resumed.state_dict()["hooks"]["SeedSteps"] != seeds
    resumed.resume_or_load(resume=True)
    assert resumed.state_dict()["hooks"]["SeedSteps"] == seeds


def test_another_seed_is_reported(data, tmp_path, caplog, monkeypatch):
    Trainer(config(data, tmp_path, "SEED", "4")).checkpointer.save("model_0000001")
    resumed = Trainer(config(data, tmp_path, "SEED", "5"))
    monkeypatch.setattr(seed_steps.logger, "propagate", True)
    resumed.resume_or_load(resume=True)
    assert "SEED is 5, but the training began with 4" in caplog.text


def test_other_base_classes_are_an_error(data, tmp_path):
    """Their masks would have been seen, and count as novel in the evaluation."""
    Trainer(config(data, tmp_path)).checkpointer.save("model_0000001")
    Trainer(config(data, tmp_path)).resume_or_load(resume=True)
    other = Trainer(config(data, tmp_path, "DATASETS.BASE_CLASSES", "['crescent']"))
    with pytest.raises(ValueError, match="OUTPUT_DIR .* began with .*BASE_CLASSES now .*crescent"):
        other.resume_or_load(resume=True)


def test_processes_with_different_checkpoints(data, tmp_path, monkeypatch):
    trainer = Trainer(config(data, tmp_path))
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda x: [x, x + 20])
    with pytest.raises(ValueError, match=r"from iterations \[0, 20\].*the same folder"):
        trainer.resume_or_load(resume=True)


def test_first_batch_of_a_resumed_training(data, tmp_path):
    """The loader skips, without a look at them, the images of the first iterations."""
    cfg = config(data, tmp_path)
    batches = iter(build_training_loader(cfg, lambda d: d["file_name"]))
    expected = [next(batches) for _ in range(5)][-1]
    trainer = Trainer(cfg)
    read = []
    trainer._trainer.data_loader = build_training_loader(
        cfg, lambda d: read.append(d["file_name"]) or d["file_name"]
    )
    trainer.start_iter = 4
    for hook in trainer._hooks:
        if isinstance(hook, seed_steps.SeedSteps):
            hook.before_train()
    assert next(iter(trainer.data_loader)) == expected == read
