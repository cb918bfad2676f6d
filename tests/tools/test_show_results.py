"""tools/show_results.py, as `make quickstart` calls it."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("show_results", ROOT / "tools/show_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def write(tmp_path):
    def write(name, value, **more):
        groups = {group: dict.fromkeys(METRICS, value) for group in ("base", "novel", "all")}
        path = tmp_path / name
        path.write_text(json.dumps({"box": groups, "mask": groups, **more}))
        return str(path)

    return write


def test_plain(program, write, capsys):
    assert program.main([write("results.json", 12.5)]) == 0
    out = capsys.readouterr().out
    assert "| mask AP   |" in out and "12.50" in out and "recorded" not in out


def test_with_a_recorded_baseline(program, write, capsys):
    record = {"title": "Mask R-CNN", "command": "python train_net.py ..."}
    recorded = write("recorded.json", 7.25, recorded=record)
    assert program.main([write("results.json", 12.5), "--recorded", recorded]) == 0
    out = capsys.readouterr().out
    assert "| mask AP, Mask R-CNN (recorded)   |   7.25 |" in out
    assert out.splitlines()[-1] == "Recorded with: python train_net.py ..."


def test_says_which_file_is_wrong(program, write, tmp_path, capsys):
    results = write("results.json", 1.0)
    assert program.main([str(tmp_path / "no.json")]) == 1
    assert "no.json" in capsys.readouterr().err
    assert program.main([results, "--recorded", results]) == 1  # nothing says what it is
    assert "results.json: KeyError('recorded')" in capsys.readouterr().err


def test_recorded_baseline_of_the_quickstart(program, write, capsys):
    path = ROOT / "docs" / "recorded" / "quickstart_mask_rcnn.json"
    assert program.main([write("results.json", 12.5), "--recorded", str(path)]) == 0
    record = json.loads(path.read_text())
    out = capsys.readouterr().out
    assert f"{record['mask']['novel']['AP']:.2f}" in out
    assert (ROOT / record["recorded"]["command"].split()[-1]).is_file()
