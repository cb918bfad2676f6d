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


def test_with_recorded_models(program, write, capsys):
    recorded = [
        write(f"{title}.json", value, recorded={"title": title, "command": f"train {title}"})
        for title, value in (("Mask R-CNN", 7.25), ("another", 8.5))
    ]
    assert program.main([write("results.json", 12.5), "--recorded", *recorded]) == 0
    out = capsys.readouterr().out
    assert "| mask AP, Mask R-CNN (recorded)   |   7.25 |" in out
    assert "| mask AP, another (recorded)      |   8.50 |" in out
    assert out.splitlines()[-2:] == [
        "Recorded with: train Mask R-CNN",
        "Recorded with: train another",
    ]


def test_says_which_file_is_wrong(program, write, tmp_path, capsys):
    results = write("results.json", 1.0)
    assert program.main([str(tmp_path / "no.json")]) == 1
    assert "no.json" in capsys.readouterr().err
    assert program.main([results, "--recorded", results]) == 1  # nothing says what it is
    error = capsys.readouterr().err
    assert "results.json" in error and "'recorded'" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "recorded").glob("quickstart_*.json")), ids=lambda x: x.stem
)
def test_recorded_models_of_the_quickstart(program, write, capsys, path):
    assert program.main([write("results.json", 12.5), "--recorded", str(path)]) == 0
    record = json.loads(path.read_text())
    out = capsys.readouterr().out
    assert f"{record['mask']['novel']['AP']:.2f}" in out
    words = record["recorded"]["command"].split()
    assert (ROOT / words[words.index("--config-file") + 1]).is_file()
    assert path.name in (ROOT / "Makefile").read_text()


def test_damaged_file(program, tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text('{"box":')
    assert program.main([str(path)]) == 1
    error = capsys.readouterr().err
    assert f"{path}: is not JSON" in error and len(error.splitlines()) == 1
