"""A training that is killed again and again ends as if nothing had happened."""

import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import interruption
import pytest
import small_model
import torch

from contrastmask.engine import Trainer, load_config, resuming
from contrastmask.engine.resuming import ContinueMetrics


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
        # The config has the output folder in it.
        return {
            k: v
            for key, x in pairs
            if key != "config"
            for k, v in values(x, f"{name}/{key}").items()
        }
    return {name: state}


def assert_same_checkpoint(one, two, name="model_final.pth"):
    one, two = (values(torch.load(x / name, weights_only=True)) for x in (one, two))
    assert one.keys() == two.keys()
    assert any("/optimizer/state/" in x for x in one) or name != "model_final.pth"
    for name, value in one.items():
        same = torch.equal(value, two[name]) if torch.is_tensor(value) else value == two[name]
        assert same, f"{name} differs after the interruptions"


def iterations(folder):
    lines = (folder / "metrics.json").read_text().splitlines()
    return [json.loads(line)["iteration"] for line in lines]


def test_killed_twice(tmp_path):
    """With the same results, to the last bit, as without."""
    opts = ["--longest-delay", "1", "SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "2"]
    opts += ["MODEL.ROI_MASK_HEAD.SELF_TRAINING.LOSS_WEIGHT", "1.0"]
    whole, killed, met = train_twice(tmp_path, ["writing", "training"], *opts)
    assert None not in met, "the training ended before the last kill"
    assert met[0]["writing"] == ["model_0000001.pth.unfinished"] and met[0]["last"] is None
    assert met[1]["last"] in ("model_0000001.pth", "model_0000003.pth")
    assert_same_checkpoint(whole, killed)
    assert iterations(whole) == iterations(killed)
    assert not list(killed.glob("*.unfinished"))


def test_killed_with_everything_on(tmp_path):
    """Parts of batches, evaluations, validation losses, the best of them, averaged weights."""
    opts = ["--longest-delay", "1", "SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "2"]
    opts += ["MODEL.ROI_MASK_HEAD.SELF_TRAINING.LOSS_WEIGHT", "1.0"]
    opts += ["SOLVER.ACCUMULATION_PARTS", "2", "SOLVER.EMA_DECAY", "0.5", "TEST.EVAL_PERIOD", "2"]
    opts += ["TEST.VALIDATION_LOSS_IMAGES", "3", "TEST.BEST_METRIC", "val/loss_mask"]
    opts += ["TEST.EARLY_STOP_PATIENCE", "3"]
    whole, killed, met = train_twice(tmp_path, ["training"], *opts)
    assert met[0] is not None, "the training ended before the kill"
    for name in ("model_final.pth", "model_final_ema.pth", "model_best.pth"):
        assert_same_checkpoint(whole, killed, name)
    assert iterations(whole) == iterations(killed)
    final = values(torch.load(whole / "model_final.pth", weights_only=True))
    assert any("/WeightAverage/module" in x for x in final)
    assert any("/BestCheckpointer/best_metric" in x for x in final)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_killed_twenty_times(tmp_path, workers):
    """The data loader has no or one process of its own."""
    opts = ["--longest-delay", "9", "SOLVER.MAX_ITER", "90", "SOLVER.CHECKPOINT_PERIOD", "3"]
    opts += ["DATALOADER.NUM_WORKERS", workers]
    kinds = ["training", "writing", "training", "training", "starting"] * 4
    whole, killed, met = train_twice(tmp_path, kinds, *opts)
    assert len(met) == 20 and None not in met, "the training ended before the last kill"
    assert any(x["writing"] for x in met)
    assert_same_checkpoint(whole, killed)
    assert iterations(whole) == iterations(killed)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume_data")
    small_model.write_data(folder, num_images=2)
    return folder


@pytest.fixture
def make_trainer(data, tmp_path):
    """Function: overrides -> trainer with the output folder `tmp_path`."""

    def make(*opts):
        opts = [*small_model.options(data, f"resume data {data.name}"), *opts]
        opts += ["SOLVER.IMS_PER_BATCH", "1", "OUTPUT_DIR", str(tmp_path)]
        return Trainer(load_config(small_model.CONFIG_FILE, opts))

    return make


def test_a_random_seed_is_kept(make_trainer):
    trainer, resumed = make_trainer("SEED", "-1"), make_trainer("SEED", "-1")
    seed = trainer.state_dict()["hooks"]["SeedSteps"]
    assert resumed.state_dict()["hooks"]["SeedSteps"] != seed
    trainer.checkpointer.save("model_0000001")
    resumed.resume_or_load(resume=True)
    assert resumed.state_dict()["hooks"]["SeedSteps"] == seed


def test_another_seed_is_reported(make_trainer, caplog, monkeypatch):
    make_trainer("SEED", "4").checkpointer.save("model_0000001")
    monkeypatch.setattr(resuming.logger, "propagate", True)
    make_trainer("SEED", "4").resume_or_load(resume=True)
    assert "SEED is" not in caplog.text
    resumed = make_trainer("SEED", "0")
    resumed.resume_or_load(resume=True)
    assert "SEED is 0, but the training began with 4" in caplog.text
    assert resumed.state_dict()["hooks"]["SeedSteps"] == {"seed": 0}


@pytest.mark.parametrize("seed", ["0", "-1"])
def test_loader_begins_with_the_training(make_trainer, seed):
    """At its iteration, with the seed in the checkpoint."""
    whole, resumed = (make_trainer("SEED", seed, "SOLVER.MAX_ITER", "9") for _ in range(2))
    resumed.load_state_dict(whole.state_dict())
    batches = []
    for trainer, start in ((whole, 0), (resumed, 5)):
        trainer.start_iter = start
        for hook in trainer._hooks:
            if isinstance(hook, resuming.SeedSteps):
                hook.before_train()
        batches.append(list(itertools.islice(trainer.data_loader, 9 - start)))
    for expected, batch in zip(batches[0][5:], batches[1]):
        assert torch.equal(expected[0]["image"], batch[0]["image"])


def test_other_base_classes_are_an_error(make_trainer):
    """Their masks would have been seen, and count as novel in the evaluation."""
    base = ["DATASETS.BASE_CLASSES", "['star', 'crescent']"]
    make_trainer(*base).checkpointer.save("model_0000001")
    make_trainer(*base).resume_or_load(resume=True)
    same = make_trainer("DATASETS.BASE_CLASSES", "['crescent', 'star']")
    same.resume_or_load(resume=True)
    other = make_trainer("DATASETS.BASE_CLASSES", "['ring', 'crescent']")  # as many
    with pytest.raises(ValueError, match="OUTPUT_DIR.*star.*BASE_CLASSES.*ring"):
        other.resume_or_load(resume=True)
    without_masks = make_trainer("MODEL.MASK_ON", "False", *base)
    with pytest.raises(ValueError, match="OUTPUT_DIR.*star.*BASE_CLASSES.*no class"):
        without_masks.resume_or_load(resume=True)


def test_processes_with_different_checkpoints(make_trainer, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda x: [x, x + 20])
    with pytest.raises(ValueError, match=r"\[0, 20\].*OUTPUT_DIR"):
        trainer.resume_or_load(resume=True)


def lines(*iterations):
    return "".join(json.dumps({"iteration": i, "loss": 1.0}) + "\n" for i in iterations)


def continue_metrics(path, start_iter):
    """As a training does that begins with an iteration: its writer has opened the file before."""
    with open(path, "a") as open_file:
        hook = ContinueMetrics(str(path))
        hook.trainer = SimpleNamespace(start_iter=start_iter)
        hook.before_train()
        open_file.write(lines(start_iter + 1))


@pytest.mark.parametrize(
    "before, start, after",
    [
        (lines(19, 39, 59), 40, lines(19, 39)),
        (lines(19, 39, 40), 40, lines(19, 39)),
        (lines(19, 39, 59) + '{"iteration": 7', 40, lines(19, 39)),
        (lines(19, 39) + '{"iteration": 5', 40, lines(19, 39)),
        (lines(19, 39) + '{"iteration": 5}', 40, lines(19, 39)),
        (lines(19, 39) + "[5]\n{}\n", 40, lines(19, 39)),
        (lines(19, 39), 40, lines(19, 39)),
        # An earlier training in the same folder.
        (lines(19, 39, 59) + lines(19, 39), 20, lines(19, 39, 59) + lines(19)),
        ("", 40, ""),
    ],
)
def test_metrics_of_a_resumed_training(tmp_path, before, start, after):
    path = tmp_path / "metrics.json"
    path.write_text(before)
    continue_metrics(path, start)
    assert path.read_text() == after + lines(start + 1)
    assert len(list(tmp_path.iterdir())) == 1


def test_only_the_main_process_changes_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: 1)
    path = tmp_path / "metrics.json"
    path.write_text(lines(19, 39))
    for start in (0, 20):
        continue_metrics(path, start)
    assert path.read_text() == lines(19, 39, 1, 21)
    assert len(list(tmp_path.iterdir())) == 1


def test_metrics_of_an_earlier_training(tmp_path):
    """A training from the beginning does not go on in the file of another one."""
    path = tmp_path / "metrics.json"
    for iteration in (0, 8, 9):
        continue_metrics(path, 0)
        path.write_text(path.read_text() + lines(iteration))
    assert path.read_text() == lines(1, 9)
    assert (tmp_path / "metrics_earlier_1.json").read_text() == lines(1, 0)
    assert (tmp_path / "metrics_earlier_2.json").read_text() == lines(1, 8)
    assert len(list(tmp_path.iterdir())) == 3
