import json
import runpy
from pathlib import Path

import pytest
import torch

from contrastmask.benchmark.memory import peak_memory
from contrastmask.benchmark.timing import Timing, compare, ratio

TOOL = str(Path(__file__).parents[2] / "tools" / "benchmark.py")


@pytest.fixture
def benchmark():
    """Function: arguments -> the content of the JSON file."""
    main = runpy.run_path(TOOL)["main"]

    def run(path, *args):
        num_threads = torch.get_num_threads()
        try:
            assert main(["--quick", "--repeats", "1", "--json", str(path), *args]) == 0
        finally:
            torch.set_num_threads(num_threads)
        return json.loads(path.read_text())

    return run


def test_every_part_gives_plausible_numbers(benchmark, tmp_path, capsys):
    args = ["--device", "cpu", "--rois", "2", "4", "--classes", "5", "50", "--threads", "1"]
    content = benchmark(tmp_path / "out" / "benchmark.json", *args)
    assert content["machine"]["threads"] == 1 and content["machine"]["torch"] == torch.__version__
    parts = content["parts"]
    assert list(parts) == [
        "pixel_sets", "branch", "cam", "self_similarity", "model", "mapper", "coco_eval"
    ]  # fmt: skip
    printed = capsys.readouterr().out
    for name, rows in parts.items():
        assert f"({name})" in printed
        for row in rows:
            assert row.get("ms", 1) > 0 and row.get("ratio", 1) > 0, (name, row)

    assert [row["RoIs"] for row in parts["pixel_sets"]] == [2, 4]
    assert parts["branch"][0]["what"] == "bare convolutions" and parts["branch"][0]["ratio"] == 1
    assert [row["classes"] for row in parts["cam"]] == [5, 50] * 2
    for row in parts["self_similarity"]:
        assert row["max difference"] < 1e-5 and row["of gradients"] < 1e-5
    plain, ours = (
        [row for row in parts["model"] if row["model"] == x] for x in ("Mask R-CNN", "ContrastMask")
    )
    assert all(a["peak MB"] < b["peak MB"] for a, b in zip(plain, ours))
    assert all(len(row["where the time goes"]) == 8 for row in parts["model"])
    assert {row["mapper"] for row in parts["mapper"]} == {"Detectron2", "ContrastMask"}
    for row in parts["coco_eval"]:
        assert row["s"] > 0 and row.get("AP difference", 0) < 1e-6
        assert 0 < row.get("novel AP", 1) <= 100


def test_arguments_that_make_no_sense(benchmark, tmp_path):
    for args in (["--rois", "0"], ["--parts", "everything"], ["--dtype", "int8"]):
        with pytest.raises(SystemExit):
            benchmark(tmp_path / "benchmark.json", *args)


def test_peak_memory_is_that_of_tensors_at_the_same_time():
    def function():
        for _ in range(3):
            first = torch.zeros(1000)
            second = first + 1
            del first, second

    assert peak_memory(function, "cpu") == pytest.approx(8000, abs=100)


def test_comparison_takes_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = compare(functions, 2, "cpu")
    assert "".join(calls) == "ababab" and len(timings["a"].wall) == 2
    assert ratio(Timing([2.0, 6.0, 4.0], []), Timing([1.0, 2.0, 4.0], [])) == 2.0
