import json

import pytest
import synthetic_coco

from contrastmask.evaluation import (
    format_results_table,
    read_results_json,
    write_results_json,
)

METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
NAN = float("nan")


def metrics(first):
    return {m: first + i for i, m in enumerate(METRICS)}


@pytest.fixture
def results():
    return {
        "bbox": {**metrics(10.0), "AP-ant": 3.25, "AP-bee-eater": NAN},
        "bbox-base": metrics(20.0),
        "bbox-novel": {**metrics(30.0), "APl": NAN},
        "segm": {**metrics(40.0), "AP-ant": 4.5, "AP-bee-eater": 5.5},
        "segm-base": metrics(50.0),
        "segm-novel": metrics(60.126),
        "segm-harmonic": {"AP": 54.6},
        "gt-box-mask": {"IoU": 71.0, "IoU-ant": 72.5, "IoU-bee-eater": NAN},
        "gt-box-mask-base": {"IoU": 73.0},
        "gt-box-mask-novel": {"IoU": NAN},
        "segm-filled-box": {m: NAN for m in METRICS},
        "segm-filled-box-base": metrics(70.0),
        "segm-filled-box-novel": metrics(80.0),
    }


def cells(table, title):
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[x.strip() for x in line.strip("|").split("|")] for line in lines]
    return next(row[1:] for row in rows if row[0] == title)


def test_table(results):
    table = format_results_table(results)
    assert cells(table, "") == ["base", "novel", "all"]
    assert cells(table, "box AP") == ["20.00", "30.00", "10.00"]
    assert cells(table, "mask AP") == ["50.00", "60.13", "40.00"]
    assert cells(table, "mask AP50") == ["51.00", "61.13", "41.00"]
    assert cells(table, "mask IoU at ground-truth boxes") == ["73.00", "-", "71.00"]
    assert cells(table, "mask AP, box masks") == ["70.00", "80.00", "-"]
    assert table.splitlines()[-1] == "Harmonic mean of base and novel mask AP: 54.60"


def test_table_with_a_baseline(results):
    baseline = {**results, "segm-novel": metrics(1.0), "segm": metrics(2.0)}
    table = format_results_table(results, {"other (recorded)": baseline})
    assert cells(table, "mask AP") == ["50.00", "60.13", "40.00"]
    assert cells(table, "mask AP, other (recorded)") == ["50.00", "1.00", "2.00"]
    assert cells(table, "mask AP50, other (recorded)") == ["51.00", "2.00", "3.00"]
    assert cells(table, "mask IoU at ground-truth boxes, other (recorded)")[0] == "73.00"
    assert "box AP, other" not in table
    old = {k: v for k, v in baseline.items() if not k.startswith("gt-box")}
    assert "boxes, old" not in format_results_table(results, {"old": old})


def test_table_of_boxes(results):
    table = format_results_table({k: v for k, v in results.items() if k.startswith("bbox")})
    assert cells(table, "box AP") == ["20.00", "30.00", "10.00"]
    assert "mask" not in table


def test_json(results, tmp_path):
    path = tmp_path / "folder" / "results.json"
    write_results_json(results, str(path), synthetic_coco.SPLIT)
    report = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert list(report) == ["box", "mask", "gt_box_mask", "filled_box_mask", "classes"]
    assert report["box"] == {
        "base": metrics(20.0),
        "novel": {**metrics(30.0), "APl": None},
        "all": metrics(10.0),
        "per_class": {"ant": 3.25, "bee-eater": None},
    }
    assert report["mask"] == {
        "base": metrics(50.0),
        "novel": metrics(60.126),
        "all": metrics(40.0),
        "per_class": {"ant": 4.5, "bee-eater": 5.5},
        "harmonic_mean": 54.6,
    }
    assert report["gt_box_mask"] == {
        "base": {"IoU": 73.0},
        "novel": {"IoU": None},
        "all": {"IoU": 71.0},
        "per_class": {"ant": 72.5, "bee-eater": None},
    }
    assert report["filled_box_mask"]["all"] == {m: None for m in METRICS}
    assert report["filled_box_mask"]["novel"] == metrics(80.0)
    assert report["classes"] == {
        "base": ["ant", "cat", "eel", "gnu"],
        "novel": ["bee", "dog", "hen"],  # the fox is in neither
    }


def test_file_of_version_0_1_0(tmp_path):
    numbers = {group: metrics(10.0) for group in ("base", "novel", "all")}
    content = {"box": {**numbers, "per_class": {"ant": 1.0}}, "filled_box_mask": numbers}
    (tmp_path / "results.json").write_text(json.dumps(content))
    table = format_results_table(read_results_json(str(tmp_path / "results.json")))
    assert cells(table, "mask AP50, box masks") == ["11.00"] * 3 and "ground-truth" not in table


def test_json_of_boxes(results, tmp_path):
    path = tmp_path / "results.json"
    write_results_json({k: v for k, v in results.items() if k.startswith("bbox")}, str(path))
    assert list(json.loads(path.read_text())) == ["box"]


def test_table_of_a_written_file(results, tmp_path):
    path = str(tmp_path / "results.json")
    write_results_json(results, path)
    assert format_results_table(read_results_json(path)) == format_results_table(results)
