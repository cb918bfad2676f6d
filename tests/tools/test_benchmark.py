"""tools/benchmark.py: what is measured, and all parts in sizes that only test the benchmark."""

import json
from argparse import Namespace

import benchmark
import pytest
import torch
from benchmark_data import synthetic_coco
from benchmark_parts import Comparison, model
from small_model import CONFIG_FILE


@pytest.fixture(autouse=True)
def keep_number_of_threads():
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def test_every_part_gives_plausible_numbers(tmp_path, capsys):
    path = tmp_path / "out" / "benchmark.json"
    args = ["--quick", "--device", "cpu", "--rois", "3", "--classes", "5", "50", "--threads", "1"]
    assert benchmark.main([*args, "--json", str(path)]) == 0
    content, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert content["machine"]["threads"] == 1
    assert torch.__version__ in content["machine"]["environment"]
    parts = content["parts"]
    for name in ("pixel_sets", "branch", "cam", "self_similarity", "model", "mapper", "coco_eval"):
        assert f"({name})" in printed
        for row in parts[name]:
            assert row["p10"] <= row["ms"] <= row["p90"] and row["cpu ms"] > 0, row
        assert parts[name][0]["ratio"] == parts[name][0]["cpu ratio"] == 1
    assert [x["what"] for x in parts["cam"]] == ["5 classes", "50 classes"] * 2
    assert [x["what"] for x in parts["branch"]][:2] == ["bare convolutions", "branch"]
    assert parts["self_similarity"][2]["peak MB"] > 0
    training, inference = parts["model"][:3], parts["model"][3:]
    for rows in (training, inference):
        assert [x["what"] for x in rows] == ["Mask R-CNN", "ContrastMask", "with box supervision"]
        assert rows[0]["peak MB"] < rows[1]["peak MB"] and rows[0]["peak ratio"] == 1
    assert training[0]["loss"] < training[1]["loss"] < training[2]["loss"]
    assert [x["masks"] for x in inference] == [3, 3, 3]
    assert all(x["masks"] == 3 for x in parts["inference"])
    whole, *stages = [x["cpu ms"] for x in parts["inference"] if "difference" not in x]
    assert len(stages) == 10 and all(0 < x < whole for x in stages)
    ways = {x["what"]: x["difference"] for x in parts["inference"] if "difference" in x}
    assert ways["mask branch as it is"] == 0 and ways["8 RoIs at a time"] < 1e-4
    assert ways["features pooled once"] < 1e-4  # both at 14 x 14 here
    assert [x["what"] for x in parts["mapper"]] == ["Detectron2", "ContrastMask"]
    aps = {(x["IoU"], x["AP"]) for x in parts["coco_eval"]}
    assert len(aps) == 2  # the same with each library
    assert all(5 < ap < 95 for _, ap in aps)
    assert [x["what"] for x in parts["coco_size"]] == ["2 images", "4 images", "8 images"]
    for row in parts["coco_size"]:
        assert all(row[x] > 0 for x in ("inspect", "pack", "evaluate segm", "GB, evaluate segm"))


def test_variants_of_the_model():
    args = Namespace(
        quick=True, device="cpu", dtype=["float32"], detections=[2], config_file=CONFIG_FILE,
        opts=["MODEL.ROI_MASK_HEAD.NUM_CONV", "1"],
        variant=[["deep", "MODEL.ROI_MASK_HEAD.NUM_CONV", "3"]],
    )  # fmt: skip
    comparison = next(model(args))
    assert list(comparison.functions) == ["Mask R-CNN", "deep"]
    plain, deep = (x.__self__._model.roi_heads for x in comparison.functions.values())
    assert plain.contrastive_head is None and not plain.cam_on and plain.box_supervision is None
    assert deep.contrastive_head is not None and deep.cam_on
    assert (len(plain.mask_head.convs), len(deep.mask_head.convs)) == (1, 3)


@pytest.mark.parametrize(
    "args",
    [["--rois", "0"], ["--parts", "everything"], ["--dtype", "int8"], ["--variants", "x"]],
)
def test_arguments_that_make_no_sense(args):
    with pytest.raises(SystemExit):
        benchmark.main(["--quick", *args])


def test_functions_run_in_turn(monkeypatch):
    calls, clock = [], [0.0]
    monkeypatch.setattr(benchmark, "timer", lambda: clock[0])

    def function(name, seconds):
        calls.append(name)
        clock[0] += seconds[len(calls) - 1]
        sum(range(1000))  # takes processor time
        return {"times": len(calls)}

    seconds = [9, 9, 1, 2, 2, 12, 4, 16]
    functions = {name: lambda name=name: function(name, seconds) for name in "ab"}
    rows = benchmark.measure(Comparison({"of": 3}, functions, 5, has_memory=False), "cpu", 3)
    assert "".join(calls) == "abababab"
    assert [(x["of"], x["what"], x["ms"], x["times"]) for x in rows] == [
        (3, "a", 2000, 7),
        (3, "b", 12000, 8),
    ]
    # The median of the ratios 2, 6, 4, not the ratio of the medians.
    assert (rows[0]["ratio"], rows[1]["ratio"]) == (1, 4)


def test_peak_memory_is_that_of_tensors_at_the_same_time():
    def function():
        for _ in range(3):
            first = torch.zeros(1000)
            second = first + 1
            del first, second

    assert benchmark.peak_memory(function, "cpu") == pytest.approx(8000, abs=100)
    assert benchmark.peak_memory(lambda: None, "cpu") == 0


def test_synthetic_coco():
    dataset, detections = synthetic_coco(4, 30, num_classes=9)
    assert len(detections) == 4 * 30 and len(dataset["images"]) == 4
    ids = [x["id"] for x in dataset["annotations"]]
    assert len(set(ids)) == len(ids) > 10
    assert {x["category_id"] for x in detections} <= set(range(1, 10))
