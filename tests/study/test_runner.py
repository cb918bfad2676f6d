"""Which settings the weights and results in a study's folders stand for."""

import json
from pathlib import Path

import pytest
import yaml

from contrastmask.study import load_study, run_study, runner

STUDY = {
    "base_config": "base.yaml",
    "seeds": [1],
    "common": {"SOLVER.MAX_ITER": 7},
    "start": {"MODEL.MASK_ON": False},
    "variants": {"plain": {"settings": {"SOLVER.BASE_LR": 0.5}}},
}


class Study:
    """A study whose trainings only leave a file of weights."""

    def __init__(self, folder):
        self.folder = folder
        self.output = folder / "output"
        self.plain = self.output / "plain" / "seed1"
        self.trained = []
        self.write_base_config(BASE_LR=0.1)

    def write_base_config(self, **solver):
        (self.folder / "further_base.yaml").write_text(yaml.safe_dump({"SOLVER": solver}))
        (self.folder / "base.yaml").write_text("_BASE_: further_base.yaml\n")

    def train(self, settings, folder):
        path = Path(folder, "model_final.pth")
        if not path.exists():
            self.trained.append(path.parent.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name("training_cost.json").write_text('{"seconds": 1}')
            path.write_text("weights")
        return str(path)

    def run(self, **changes):
        path = self.folder / "study.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}))
        return run_study(load_study(str(path)), str(self.output), "train_net.py")


@pytest.fixture
def study(tmp_path, monkeypatch):
    study = Study(tmp_path)
    monkeypatch.setattr(runner, "_TrainProgram", lambda *args: study.train)
    monkeypatch.setattr(runner, "_evaluate", lambda *args: {"mask": {}})
    return study


def test_same_settings(study):
    results = study.run()
    assert study.trained == ["start", "seed1"]
    study.write_base_config(BASE_LR=0.1)
    assert study.run() == results
    assert study.trained == ["start", "seed1"]
    settings = json.loads((study.plain / "study_settings.json").read_text())
    assert settings["base_config"] == {"SOLVER": {"BASE_LR": 0.1}}
    assert settings["start"] == {"SOLVER.MAX_ITER": 7, "MODEL.MASK_ON": False, "SEED": 1}


@pytest.mark.parametrize(
    "changes, folder, key",
    [
        ({"common": {"SOLVER.MAX_ITER": 8}}, "start", "settings: SOLVER.MAX_ITER"),
        ({"start": {"MODEL.MASK_ON": True}}, "start", "settings: MODEL.MASK_ON"),
        ({"seeds": [2, 1]}, "start", "settings: SEED"),
        ({"start": None}, "plain/seed1", "start: MODEL.MASK_ON"),
        ({"variants": {"plain": {"settings": {"SEED": 3}}}}, "plain/seed1", "SOLVER.BASE_LR"),
    ],
)
@pytest.mark.parametrize("left", ["result.json", "model_final.pth", "last_checkpoint"])
def test_other_settings(study, changes, folder, key, left):
    study.run()
    for name in ("result.json", "model_final.pth"):
        (study.output / folder / name).unlink(missing_ok=True)
    (study.output / folder / left).write_text("{}")
    before = sorted(study.output.rglob("*"))
    message = rf"{study.output / folder} was made with other settings \(.*{key}.*\): remove"
    with pytest.raises(ValueError, match=message):
        study.run(**changes)
    assert sorted(study.output.rglob("*")) == before


def test_other_base_config(study):
    study.run()
    study.write_base_config(BASE_LR=0.2)
    with pytest.raises(ValueError, match=r"start was made with .*\(base_config: SOLVER\)"):
        study.run()


def test_start_of_other_settings_made_again(study):
    """A variant stands for the start that it began with."""
    study.run()
    for path in (study.output / "start").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"seed1 was made with .*\(start: MODEL.MASK_ON\)"):
        study.run(start={"MODEL.MASK_ON": True})


def test_weights_of_unknown_settings(study):
    study.run()
    (study.output / "start" / "study_settings.json").unlink()
    with pytest.raises(ValueError, match=r"there is no .*start/study_settings.json"):
        study.run()


def test_other_settings_after_an_attempt_without_checkpoint(study):
    study.output.joinpath("start").mkdir(parents=True)
    for name in ("train.log", "training_cost.json", "study_settings.json"):
        (study.output / "start" / name).write_text("{}")
    study.run()
    assert study.trained == ["start", "seed1"]
    assert (study.output / "start" / "training_cost.json").read_text() == '{"seconds": 1}'
