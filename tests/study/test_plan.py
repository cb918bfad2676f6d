"""Study files: what they mean, and what is said of wrong ones."""

from pathlib import Path

import pytest
import yaml

from contrastmask.engine import load_config
from contrastmask.study import load_study
from contrastmask.study.runner import as_options

GOOD = {
    "base_config": "base.yaml",
    "seeds": [3, 4],
    "common": {"SOLVER.MAX_ITER": 7},
    "variants": {
        "one": {"title": "The first", "settings": {"SOLVER.BASE_LR": 0.5}},
        "two": {"title": "The second"},
    },
}


@pytest.fixture
def write(tmp_path):
    (tmp_path / "base.yaml").write_text("VERSION: 2\n")

    def write(**changes):
        path = tmp_path / "study.yaml"
        content = {k: v for k, v in {**GOOD, **changes}.items() if v is not ...}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return str(path)

    return write


def test_reads(write, tmp_path):
    study = load_study(write(), settings={"SOLVER.MAX_ITER": 9, "VIS_PERIOD": 1})
    assert study.base_config == str(tmp_path / "base.yaml")
    assert study.seeds == (3, 4)
    assert study.start is None
    assert study.common == {"SOLVER.MAX_ITER": 9, "VIS_PERIOD": 1}
    assert [(x.name, x.title, x.settings) for x in study.variants] == [
        ("one", "The first", {"SOLVER.BASE_LR": 0.5}),
        ("two", "The second", {}),
    ]


def test_a_part_of_it(write):
    study = load_study(write(), variants=["two"], seeds=[8])
    assert [x.name for x in study.variants] == ["two"]
    assert study.seeds == (8,)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seeds": ...}, "needs the keys"),
        ({"more": 1}, r"unknown keys \['more'\]"),
        ({"seeds": []}, "seeds: a list"),
        ({"seeds": [1, True]}, "seeds: a list"),
        ({"seeds": [2, 2]}, "twice"),
        ({"base_config": "other.yaml"}, "there is no file .*other.yaml"),
        ({"base_config": 3}, "base_config: a path"),
        ({"common": [1]}, "common: config keys"),
        ({"start": "x"}, "start: config keys"),
        ({"variants": {}}, "variants: a name"),
        ({"variants": {"a/b": {}}}, "'a/b' cannot name a folder"),
        ({"variants": {"a": {"setting": {}}}}, "variants.a: only title and settings"),
        ({"variants": {"a": {"settings": 3}}}, "variants.a.settings: config keys"),
    ],
)
def test_wrong(write, changes, message):
    path = write(**changes)
    with pytest.raises(ValueError, match=f"Study {path}: .*{message}"):
        load_study(path)


def test_not_yaml(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("seeds: [1")
    with pytest.raises(ValueError, match="not YAML"):
        load_study(str(path))


def test_unknown_variant(write):
    with pytest.raises(ValueError, match=r"no variants \['three'\], only \['one', 'two'\]"):
        load_study(write(), variants=["three"])


@pytest.mark.parametrize("path", sorted(Path("studies").glob("*.yaml")), ids=lambda x: x.stem)
def test_settings_of_the_shipped_studies_are_config_keys(path):
    study = load_study(str(path))
    for settings in [study.start, *(x.settings for x in study.variants)]:
        cfg = load_config(study.base_config, as_options({**study.common, **settings}))
        for key, value in settings.items():
            node = cfg
            for part in key.split("."):
                node = node[part]
            assert (list(node) if isinstance(value, list) else node) == value
