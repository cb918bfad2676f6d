"""tools/run_study.py: study files, runs, tables, and a real study as small as possible."""

import json
import os
import time
from pathlib import Path

import pytest
import run_study
import small_model
import yaml
from PIL import Image
from study_summary import format_tables, plot, summarize


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "data"
    small_model.write_odd_data(folder)
    small_model.write_odd_data(folder, "val", num_images=3, seed=1)
    return folder


@pytest.fixture
def content(data, tmp_path):
    """Content of a study file, whose base config is `base.yaml`."""
    (tmp_path / "base.yaml").write_text(f'_BASE_: "{small_model.CONFIG_FILE}"\n')
    opts = small_model.options(data, "unused")
    files = {"study_train": "train", "study_full": "train_full", "study_val": "val_full"}
    common = dict(zip(opts[::2], opts[1::2]))
    common["DATASETS.COCO_FORMAT"] = [
        [name, str(data / "annotations" / f"{file}.json"), str(data / file.split("_")[0])]
        for name, file in files.items()
    ]
    common.update({"DATASETS.TRAIN": ["study_train"], "DATASETS.TEST": ["study_val"]})
    common.update({"DATASETS.BASE_CLASSES": ["auto"], "SOLVER.MAX_ITER": 1, "TEST.REPORT": False})
    common.update({"SOLVER.IMS_PER_BATCH": 1, "INPUT.MIN_SIZE_TRAIN": [64]})
    return {
        "base_config": "base.yaml",
        "seeds": [5, 3],
        "common": common,
        "start": {"MODEL.MASK_ON": False},
        "baseline": "plain",
        "variants": {
            "plain": {
                "title": "Mask R-CNN",
                "settings": {"MODEL.ROI_CONTRASTIVE_HEAD.ENABLED": False},
            },
            # Trains with other base classes than those that the study compares.
            "all_masks": {"settings": {"DATASETS.TRAIN": ["study_full"], "SOLVER.MAX_ITER": 2}},
        },
    }


@pytest.fixture
def load(tmp_path, content):
    """Function: changes of the study file, arguments -> Study."""

    def load(changes=None, **kwargs):
        path = tmp_path / "study.yaml"
        changed = {k: v for k, v in {**content, **(changes or {})}.items() if v is not ...}
        path.write_text(yaml.safe_dump(changed, sort_keys=False))
        return run_study.load_study(str(path), **kwargs)

    return load


# -- the file -------------------------------------------------------------------------------------


def test_load(load, content, tmp_path):
    study = load(seeds=[8], variants=["all_masks"], settings={"SOLVER.MAX_ITER": "9"})
    assert study.base_config == str(tmp_path / "base.yaml") and study.seeds == [8]
    assert study.common == {**content["common"], "SOLVER.MAX_ITER": "9"}
    settings = content["variants"]["all_masks"]["settings"]
    assert study.variants == {"all_masks": {"title": "all_masks", "settings": settings}}
    assert load().seeds == [5, 3] and list(load().variants) == ["plain", "all_masks"]


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"seeds": ...}, "seeds"),
        ({"more": 1}, "more"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, True]}, "seeds"),
        ({"seeds": [2, 2]}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"base_config": "other.yaml"}, "other.yaml"),
        ({"base_config": 3}, "base_config"),
        ({"common": [1]}, "common"),
        ({"start": "x"}, "start"),
        ({"start": {"SOLVER.MAXITER": 3}}, "start.*SOLVER.MAXITER"),
        ({"baseline": "others"}, "others"),
        ({"variants": {}}, "variants"),
        ({"variants": {"a/b": {}}}, "a/b"),
        ({"variants": {"a": None}}, "variants.a"),
        ({"variants": {"a": {"setting": {}}}}, "variants.a.setting"),
        ({"variants": {"a": {"settings": 3}}}, "variants.a.settings"),
        ({"variants": {"plain": {"settings": {"SOLVER.MAX_ITER": "x"}}}}, "plain.*MAX_ITER"),
    ],
)
def test_files_that_are_no_study(load, tmp_path, changes, named):
    path = tmp_path / "study.yaml"
    with pytest.raises(ValueError, match=f"{path}: .*{named}"):
        load(changes)
    path.write_text("seeds: [1")
    with pytest.raises(ValueError, match=str(path)):
        run_study.load_study(str(path))


@pytest.mark.parametrize("path", sorted(Path("studies").glob("*.yaml")), ids=lambda x: x.stem)
def test_studies_of_the_project(path):
    study = run_study.load_study(str(path))  # checks all settings
    assert study.baseline == "gt_boxes" and len(study.seeds) == 3


# -- the runs -------------------------------------------------------------------------------------


@pytest.fixture
def runs(load, tmp_path, monkeypatch):
    """Runs studies whose trainings and evaluations only leave files."""

    class Runs:
        output = tmp_path / "output"

        def __call__(self, changes=None, **kwargs):
            """The arguments of each call of train_net.py. The results stay in `results`."""
            self.calls = []
            self.results = run_study.run_study(load(changes, **kwargs), str(self.output))
            return self.calls

    def call(run, *args):
        runs.calls.append([*args, "OUTPUT_DIR", run._folder])
        if "--eval-only" in args:
            Path(run._folder, "results.json").write_text('{"mask": {"novel": {"AP": 12.5}}}')
        else:
            Path(run._folder, "model_final.pth").touch()

    runs = Runs()
    monkeypatch.setattr(run_study.Run, "_call", call)
    return runs


def setting(args, key):
    """Value of a key among the arguments of train_net.py."""
    assert args.count(key) == 1, key
    return args[args.index(key) + 1]


def test_each_variant_is_trained_and_evaluated_with_each_seed(runs):
    calls = runs()
    folders = [Path(setting(x, "OUTPUT_DIR")).relative_to(runs.output).as_posix() for x in calls]
    expected = ["start", "plain/seed5", "all_masks/seed5", "plain/seed3", "all_masks/seed3"]
    assert folders == [x for folder in expected for x in (folder, folder)]
    assert [x.count("--resume") for x in calls] == [1, 0] * 5
    assert [x.count("--eval-only") for x in calls] == [0, 1] * 5
    trained = calls[::2]
    assert [setting(x, "SEED") for x in trained] == ["5", "5", "5", "3", "3"]
    assert [setting(x, "SOLVER.MAX_ITER") for x in trained] == ["1", "1", "2", "1", "2"]
    assert {setting(x, "DATASETS.TEST") for x in trained} == {"()"}
    start = str(runs.output / "start" / "model_final.pth")
    assert [setting(x, "MODEL.WEIGHTS") for x in trained] == ["", *[start] * 4]
    assert [x.count("MODEL.MASK_ON") for x in trained] == [1, 0, 0, 0, 0]
    assert [(x["variant"], x["title"], x["seed"]) for x in runs.results] == [
        ("plain", "Mask R-CNN", 5),
        ("all_masks", "all_masks", 5),
        ("plain", "Mask R-CNN", 3),
        ("all_masks", "all_masks", 3),
    ]
    assert all(x["mask"]["novel"]["AP"] == 12.5 for x in runs.results)


def test_all_are_evaluated_with_the_classes_of_the_study(runs):
    evaluated = runs()[1::2]
    assert {setting(x, "DATASETS.TEST") for x in evaluated} == {"('study_val',)"}
    for key in ("DATASETS.BASE_CLASSES", "DATASETS.NOVEL_CLASSES"):
        assert len({setting(x, key) for x in evaluated}) == 1
    base = set(yaml.safe_load(setting(evaluated[0], "DATASETS.BASE_CLASSES")))
    novel = set(yaml.safe_load(setting(evaluated[0], "DATASETS.NOVEL_CLASSES")))
    assert base and base <= {*small_model.SHAPE_BASE_CLASSES}
    assert novel == {*small_model.SHAPE_CLASSES} - base
    folders = [setting(x, "OUTPUT_DIR") for x in evaluated]
    assert [setting(x, "MODEL.WEIGHTS") for x in evaluated] == [
        f"{folder}/model_final.pth" for folder in folders
    ]


def test_what_is_done_is_not_repeated(runs, data):
    runs()
    results = runs.results
    data.rename(data.with_name("moved"))  # not needed any more
    try:
        assert runs() == [] and runs.results == results
    finally:
        data.with_name("moved").rename(data)
    calls = runs(seeds=[5, 7], variants=["all_masks"])
    assert [setting(x, "OUTPUT_DIR") for x in calls] == [str(runs.output / "all_masks/seed7")] * 2


def test_a_study_that_was_moved(runs):
    runs()
    runs.output = runs.output.rename(runs.output.with_name("moved"))
    assert runs() == []


def test_trained_but_not_evaluated(runs):
    runs()
    path = runs.output / "all_masks" / "seed5" / "study_run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "result": None}))
    (call,) = runs()
    assert "--eval-only" in call and setting(call, "OUTPUT_DIR") == str(path.parent)


@pytest.mark.parametrize(
    "changes, folder, key",
    [
        ({"start": {"MODEL.MASK_ON": True}}, "start", "settings: MODEL.MASK_ON"),
        ({"seeds": [3, 5]}, "start", "settings: SEED"),
        ({"start": None}, "plain/seed5", "start: MODEL.MASK_ON"),
        ({"variants": {"plain": {"settings": {"SOLVER.BASE_LR": 0.5}}}}, "plain/seed5", "BASE_LR"),
    ],
)
def test_other_settings(runs, changes, folder, key):
    runs()
    before = {x: x.read_bytes() for x in runs.output.rglob("*") if x.is_file()}
    changes = {k: ... if v is None else v for k, v in changes.items()}
    with pytest.raises(ValueError, match=rf"{runs.output / folder} was made .*{key}.* remove"):
        runs(changes)
    assert before == {x: x.read_bytes() for x in runs.output.rglob("*") if x.is_file()}


@pytest.mark.parametrize("left", ["model_final.pth", "model_0000001.pth", "result"])
def test_folder_of_other_settings(tmp_path, left):
    state = {"made_with": {"settings": {"SEED": 1}}, "cost": {"seconds": 3}, "result": None}
    if left == "result":
        state["result"] = {"box": 1}
    else:
        (tmp_path / left).touch()
    (tmp_path / "study_run.json").write_text(json.dumps(state))
    run = run_study.Run(str(tmp_path), {"settings": {"SEED": 1}}, 0)
    assert (run.cost, run.result) == (state["cost"], state["result"])
    with pytest.raises(ValueError, match="settings: SEED"):
        run_study.Run(str(tmp_path), {"settings": {"SEED": 2}}, 0)


def test_folder_of_unknown_settings(tmp_path):
    run = run_study.Run(str(tmp_path), {"settings": {"SEED": 2}}, 0)
    assert run.cost["seconds"] == 0 and run.result is None
    (tmp_path / "model_final.pth").touch()
    with pytest.raises(ValueError, match="settings: SEED"):
        run_study.Run(str(tmp_path), {"settings": {"SEED": 2}}, 0)


def test_other_base_config(runs, tmp_path):
    runs()
    with open(tmp_path / "base.yaml", "a") as f:
        f.write("SEED: 3\n")
    with pytest.raises(ValueError, match="start was made .*base_config: SEED"):
        runs()


def test_start_made_again_with_other_settings(runs):
    """A variant stands for the start that it began with."""
    runs()
    for path in (runs.output / "start").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="seed5 was made .*start: MODEL.MASK_ON"):
        runs({"start": {"MODEL.MASK_ON": True}})


def test_several_test_datasets(runs, content):
    common = {**content["common"], "DATASETS.TEST": ["study_val", "study_full"]}
    with pytest.raises(ValueError, match="study.yaml: DATASETS.TEST"):
        runs({"common": common})
    assert not list(runs.output.rglob("*.pth"))


# In place of train_net.py. What it does depends on what its arguments say.
TRAIN_PROGRAM = """
import sys
from pathlib import Path

args = sys.argv[1:]
folder = Path(args[args.index("OUTPUT_DIR") + 1])
memory = bytes(bytearray(64 * 2**20))
if "gpu" in args:
    print("eta: 0:01:05  max_mem: 12M" + chr(10) + "eta: 0:00:03  max_mem: 7M")
if "fail" in args:
    sys.exit("of some length" + chr(10) + "train_net.py: error: out of order")
(folder / "model_final.pth").touch()
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with TRAIN_PROGRAM."""
    program = tmp_path / "train_net.py"
    program.write_text(TRAIN_PROGRAM)
    monkeypatch.setattr(run_study, "_TRAIN_PROGRAM", str(program))
    return run_study.Run(str(tmp_path / "run"), {"settings": {"SEED": 1}}, 0)


def test_cost_adds_up_over_attempts(run, tmp_path):
    with pytest.raises(ValueError, match="study.log.*: train_net.py: error: out of order"):
        run.train("base.yaml", {"fail": 1})
    first = run.cost
    assert 0 < first["seconds"] < 60 and first["peak_memory_mib"] > 64
    again = run_study.Run(str(tmp_path / "run"), {"settings": {"SEED": 1}}, 0)
    assert again.cost == first
    again.train("base.yaml", {})
    assert again.cost["seconds"] > first["seconds"]
    cost = again.cost
    again.train("base.yaml", {"fail": 1})  # not done again
    assert again.cost == cost


def test_peak_memory_is_that_of_the_gpu_where_there_is_one(run):
    run.train("base.yaml", {"gpu": 1})
    assert run.cost["peak_memory_mib"] == 12


def test_interrupting_a_run_ends_its_training(run, monkeypatch):
    program = Path(run_study._TRAIN_PROGRAM)
    program.write_text("import time\ntime.sleep(60)")
    wait, pids = os.wait4, []

    def interrupted(pid, options):
        pids.append(pid)
        if len(pids) == 1:
            raise KeyboardInterrupt
        return wait(pid, options)

    monkeypatch.setattr(os, "wait4", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.train("base.yaml", {})
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    assert run.cost["peak_memory_mib"] > 0


# -- tables ---------------------------------------------------------------------------------------


def result(variant, seed, novel_iou, novel_ap):
    return {
        "variant": variant,
        "title": f"Title of ${variant}",
        "seed": seed,
        "mask": {
            "novel": {"AP": novel_ap, "AP50": 50.0},
            "base": {"AP": 30.0, "AP50": 60.0},
            "all": {"AP": 25.0, "AP50": 55.0},
        },
        "box": {"all": {"AP": 40.0}},
        "gt_box_mask": {"novel": {"IoU": novel_iou}, "base": {"IoU": 80.0 + seed}},
        "training": {"seconds": 1234.5, "peak_memory_mib": 99},
    }


@pytest.fixture
def results():
    return [
        result("a", 4, 60.0, 20.0),
        result("b", 9, 90.0, 30.0),
        result("a", 2, 62.0, 21.0),
        result("b", 2, 71.5, 25.0),
        result("b", 4, 70.5, None),
    ]


def test_mean_and_standard_deviation(results):
    a, b = summarize(results)
    assert (a["variant"], a["seeds"], b["seeds"]) == ("a", [4, 2], [9, 2, 4])
    assert a["numbers"]["novel IoU"] == {
        "mean": 61.0,
        "std": pytest.approx(2**0.5),
        "values": [60.0, 62.0],
    }
    # What was not measured does not count.
    assert b["numbers"]["novel mask AP"]["values"] == [30.0, 25.0]
    assert b["differences"]["novel IoU"]["values"] == []


def test_differences_are_those_of_equal_seeds(results):
    a, b = summarize(results, "a")
    assert b["differences"]["novel IoU"]["values"] == [9.5, 10.5]
    assert b["differences"]["base IoU"]["values"] == [0.0, 0.0]
    assert b["differences"]["novel mask AP"] == {"mean": 4.0, "std": None, "values": [4.0]}
    text = format_tables([a, b], "a")
    table = text[text.index("### Differences from Title of $a") :]
    assert "| Title of $a " not in table
    row = [x.strip() for x in table.splitlines()[-1].split("|")]
    assert row[1:4] == ["Title of $b", "3", "+10.00 ± 0.71 (+9.50, +10.50)"]
    assert row[5] == "+4.00"


def test_tables(results):
    text = format_tables(summarize(results))
    assert text.count("### ") == 3 and "1234 ± 0" in text
    row = next(x for x in text.splitlines() if "Title of $a" in x)
    assert [x.strip() for x in row.split("|")][1:4] == ["Title of $a", "2", "61.00 ± 1.41"]
    one = format_tables(summarize([result("a", 1, None, 20.0)], "a"), "a")
    assert one.count("### ") == 3 and "±" not in one
    assert [x.strip() for x in one.splitlines()[4].split("|")][3:5] == ["-", "81.00"]


def test_plot(results, tmp_path):
    results[0]["title"] = r"x$\foo$"  # no formula
    plot(summarize([*results, result("c", 1, None, None)]), str(tmp_path / "new" / "plot.png"))
    with Image.open(tmp_path / "new" / "plot.png") as image:
        assert image.width > 1000 and len(image.getcolors(10**6)) > 10


# -- all of it ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_study(load, tmp_path, capsys):
    load()
    output = tmp_path / "output"
    args = ["--study", str(tmp_path / "study.yaml"), "--seeds", "5", "--output", str(output)]
    assert run_study.main([*args, "SOLVER.MAX_ITER", "2"]) == 0
    printed = capsys.readouterr().out
    assert (output / "study.md").read_text() in printed and "Differences from" in printed
    assert (output / "study.png").stat().st_size > 1000
    content = json.loads((output / "study.json").read_text())
    classes = [x["classes"] for x in content["results"]]
    assert classes[0] == classes[1] and classes[0]["novel"]
    for x in content["results"]:
        assert x["training"]["seconds"] > 1 and x["training"]["peak_memory_mib"] > 100
        assert x["gt_box_mask"]["novel"]["IoU"] != x["gt_box_mask"]["base"]["IoU"]
        log = (output / x["variant"] / "seed5" / "study.log").read_text()
        assert str(output / "start" / "model_final.pth") in log
    begin = time.perf_counter()
    assert run_study.main([*args, "SOLVER.MAX_ITER", "2"]) == 0
    assert time.perf_counter() - begin < 5
    assert run_study.main([*args, "SOLVER.MAX_ITER", "3"]) == 1
    assert "SOLVER.MAX_ITER" in capsys.readouterr().err
