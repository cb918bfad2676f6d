"""Experiment trackers: one that only remembers, and the real ones, offline, where installed."""

import json
import math

import pytest
import small_model

from contrastmask.engine import Trainer, load_config, trackers


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracker_data")
    small_model.write_data(folder, num_images=2)
    return [*small_model.options(folder, "tracker_data"), "SOLVER.IMS_PER_BATCH", "2"]


@pytest.fixture
def make_trainer(data, tmp_path):
    """Function: tracker, overrides -> trainer that writes every step, and evaluates once."""

    def make(name, *opts):
        opts = [*data, "OUTPUT_DIR", str(tmp_path / "out"), "TRACKERS", f"['{name}']", *opts]
        trainer = Trainer(load_config(small_model.CONFIG_FILE, ["SOLVER.MAX_ITER", "3", *opts]))
        trainer.test = lambda *_: {"bbox": {"AP": 12.5, "APl": math.nan, "AP-cat (é)": 2.0}}
        for hook in trainer._hooks:
            if type(hook).__name__ == "PeriodicWriter":
                hook._period = 1
        return trainer

    return make


class Remembering(trackers.Tracker):
    package = "json"
    calls = []

    def begin(self):
        self.calls.append(("begin", self.run_id))
        self.run_id = self.run_id or "run 1"

    def log(self, scalars, iteration):
        self.calls.append((iteration, scalars))
        if iteration == 1:
            raise RuntimeError("server down")

    def end(self, succeeded):
        self.calls.append(("end", succeeded))


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "remembering", Remembering)
    monkeypatch.setattr(Remembering, "calls", [])
    return Remembering.calls


def test_what_it_receives(make_trainer, calls, caplog):
    make_trainer("remembering", "SOLVER.CHECKPOINT_PERIOD", "2").train()
    begin, *logged, end = calls
    assert begin == ("begin", None) and end == ("end", True)
    assert [iteration for iteration, _ in logged] == [0, 1, 2, 3]
    assert {"total_loss", "loss_mask", "lr"} <= set(logged[1][1])
    assert logged[-1][1].items() >= {"bbox/AP": 12.5, "bbox/AP-cat (é)": 2.0}.items()
    assert all(math.isfinite(x) for _, scalars in logged for x in scalars.values())

    calls.clear()
    resumed = make_trainer("remembering", "SOLVER.MAX_ITER", "4")
    resumed.resume_or_load(resume=True)
    resumed._trainer.run_step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        resumed.train()
    assert calls[0] == ("begin", "run 1") and calls[-1] == ("end", False)


def test_problems_before_training(make_trainer, calls, monkeypatch):
    with pytest.raises(ValueError, match="TRACKERS: 'tensorbored'.*wandb, mlflow"):
        make_trainer("tensorbored")
    monkeypatch.setattr(Remembering, "package", "not_installed_package")
    with pytest.raises(ImportError, match="TRACKERS.*pip install not_installed_package"):
        make_trainer("remembering")
    monkeypatch.setattr(Remembering, "package", "json")
    monkeypatch.setattr(Remembering, "begin", lambda self: json.loads("no key"))
    trainer = make_trainer("remembering")
    trainer._trainer.run_step = lambda: calls.append("step")
    with pytest.raises(ValueError, match="TRACKERS: json cannot begin a run: Expecting"):
        trainer.train()
    assert calls == []


def test_mlflow(make_trainer, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    trainer = make_trainer("mlflow")
    trainer.train()
    run_id = trainer.trackers[0].run_id
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "out"
    assert run.data.metrics["bbox/AP"] == 12.5 and run.data.metrics["bbox/AP-cat _é_"] == 2
    history = [(x.step, x.value) for x in client.get_metric_history(run_id, "total_loss")]
    expected = [(i, value) for value, i in trainer.storage.history("total_loss").values()]
    assert history[0] == pytest.approx(expected[0]) and [i for i, _ in history] == [0, 1, 2]
    resumed = make_trainer("mlflow", "SOLVER.MAX_ITER", "4")
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert resumed.trackers[0].run_id == run_id
    assert [x.step for x in client.get_metric_history(run_id, "total_loss")] == [0, 1, 2, 3]


def test_wandb(make_trainer, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "SILENT": "true", "PROJECT": "tested"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    trainer = make_trainer("wandb")
    trainer.train()
    run = trainer.trackers[0]._run
    assert run.name == "out" and run.project == "tested"
    (file,) = (tmp_path / "out" / "wandb").glob(f"offline-run-*/run-{run.id}.wandb")
    content = file.read_bytes()  # Weights & Biases has no reader of it
    assert content.count(b"total_loss") >= 3 and b"bbox/AP-cat" in content
    assert b"12.5" in content and b"IMS_PER_BATCH" in content
    resumed = make_trainer("wandb", "SOLVER.MAX_ITER", "4")
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert resumed.trackers[0]._run.id == run.id
    wandb.teardown()
