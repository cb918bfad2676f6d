"""tools/run_study.py on a few small images: all of it, again, and after a change."""

import importlib.util
import json

import pytest
import yaml
from small_model import CONFIG_FILE, ROOT, options, write_data


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Study file with two variants that begin with the same boxes-only training."""
    folder = tmp_path_factory.mktemp("study")
    write_data(folder / "data", num_images=2)
    opts = options(folder / "data", "study_images", "train_full")
    common = {key: yaml.safe_load(value) for key, value in zip(opts[::2], opts[1::2])}
    common.update(
        {
            "DATASETS.TRAIN": ["study_images"],
            "DATASETS.TEST": ["study_images"],
            "INPUT.MIN_SIZE_TRAIN": [64],
            "SOLVER.MAX_ITER": 1,
            "SOLVER.IMS_PER_BATCH": 1,
            "TEST.REPORT": False,
        }
    )
    content = {
        "base_config": CONFIG_FILE,
        "seeds": [1],
        "common": common,
        "start": {"MODEL.MASK_ON": False},
        "variants": {
            "plain": {"settings": {"MODEL.ROI_CONTRASTIVE_HEAD.ENABLED": False}},
            # Trains with other classes than those that the study compares.
            "all_masks": {"settings": {"DATASETS.BASE_CLASSES": ["auto"]}},
        },
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("run_study", ROOT / "tools" / "run_study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(program, study):
    def run(output, *args):
        return program.main(["--study", str(study), "--output", str(output), *args])

    return run


@pytest.fixture(scope="module")
def done(run, study):
    output = study.parent / "output"
    assert run(output) == 0
    return output


def test_results(done):
    content = json.loads((done / "study.json").read_text())
    assert [x["variant"] for x in content["results"]] == ["plain", "all_masks"]
    for result in content["results"]:
        assert result["training"]["seconds"] > 1
        assert result["training"]["peak_memory_mib"] > 100
        for group in ("base", "novel", "all"):
            assert 0 <= result["gt_box_mask"][group]["IoU"] <= 100
        # The groups are those of the study in both.
        assert set(result["mask"]["novel"]) == set(result["mask"]["base"])
        assert result["gt_box_mask"]["novel"]["IoU"] != result["gt_box_mask"]["base"]["IoU"]
    assert "| all_masks |" in (done / "study.md").read_text()
    assert (done / "study.png").stat().st_size > 1000


def test_variants_begin_with_the_same_detector(done):
    start = str(done / "start" / "model_final.pth")
    for name in ("plain", "all_masks"):
        assert start in (done / name / "seed1" / "train.log").read_text()


def test_what_is_done_is_not_repeated(run, done, capsys):
    runs = [done / name / "seed1" for name in ("plain", "all_masks")]
    files = [done / "start" / "model_final.pth", runs[0] / "result.json", runs[1] / "train.log"]
    times = [x.stat().st_mtime_ns for x in files]
    (runs[1] / "result.json").unlink()  # trained, but not evaluated
    assert run(done) == 0
    assert [x.stat().st_mtime_ns for x in files] == times
    assert (runs[1] / "result.json").exists()
    assert (done / "study.md").read_text() in capsys.readouterr().out


def test_results_of_other_settings_are_not_mixed_in(run, done, capsys):
    assert run(done, "--variants", "plain", "--opts", "SOLVER.BASE_LR", "0.5") == 1
    error = capsys.readouterr().err
    assert f"{done}/start was made with other settings (settings: SOLVER.BASE_LR): remove" in error


def test_failing_training_shows_why(run, tmp_path, capsys):
    assert run(tmp_path, "--opts", "SOLVER.OPTIMIZER", "NONE") == 1
    error = capsys.readouterr().err
    assert "SOLVER.OPTIMIZER is 'NONE'" in error
    assert str(tmp_path / "start" / "train.log") in error
