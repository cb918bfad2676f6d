import json
import re
from types import SimpleNamespace

import pytest
import small_model

from contrastmask.engine import load_config
from contrastmask.inference.partial_results import (
    append_masks,
    open_partial_results,
    partial_paths,
    read_partial_results,
    run_identity,
)
from contrastmask.predictor import BoxMask

RUN = {"model": ["a.pth", 5], "config": "x: 1", "annotation file": ["b.json", 7]}
MASKS = [BoxMask({"size": [3, 4], "counts": f"é{i}"}, 0.5 + i / 10) for i in range(4)]


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "out[1].partial.jsonl")


def add(path, indices, rank=0):
    """Read all partial results, and add some to those of a process."""
    output = path.removesuffix(".partial.jsonl")
    found = dict(read_partial_results(output, RUN))
    with open_partial_results(output, RUN, rank) as file:
        append_masks(file, indices, [MASKS[i] for i in indices])
    return found


def test_results_survive(path):
    assert add(path, [3, 1]) == {}
    assert add(path, [0]) == {3: MASKS[3], 1: MASKS[1]}
    assert add(path, []) == {3: MASKS[3], 1: MASKS[1], 0: MASKS[0]}
    with open(path, encoding="utf-8") as f:
        assert json.loads(f.readline()) == RUN


def test_of_several_processes(path, tmp_path):
    """A line that was cut off stays until its process opens the file, and others are not read."""
    add(path, [3])
    assert add(path, [1, 0], rank=2) == {3: MASKS[3]}
    (tmp_path / "out[1].json").write_text("not one of them")
    other = tmp_path / "out[1].partial-2.jsonl"
    assert partial_paths(str(tmp_path / "out[1]")) == [str(other), path]
    other.write_bytes(other.read_bytes()[:-3])
    assert add(path, [2]) == {3: MASKS[3], 1: MASKS[1]}
    assert add(path, [0], rank=2) == {3: MASKS[3], 1: MASKS[1], 2: MASKS[2]}
    assert add(path, []) == dict(enumerate(MASKS))
    content = other.read_text()
    other.write_text(content.replace("b.json", "c.json"))
    with pytest.raises(ValueError, match=f"{re.escape(str(other))}.* another annotation file"):
        add(path, [])


def test_every_cut_after_the_first_line(path):
    add(path, [2, 1])
    with open(path, "rb") as f:
        content = f.read()
    expected = {1: [], 2: [2], 3: [2, 1]}
    for end in range(content.index(b"\n") + 1, len(content) + 1):
        with open(path, "wb") as f:
            f.write(content[:end])
        left = expected[content[:end].count(b"\n")]
        assert add(path, [3]) == {i: MASKS[i] for i in left}
        assert add(path, []) == {i: MASKS[i] for i in [*left, 3]}


def test_empty_file(path):
    open(path, "w").close()
    assert add(path, [1]) == {} and add(path, []) == {1: MASKS[1]}


@pytest.mark.parametrize("key", RUN)
def test_of_another_run(path, key):
    add(path, [2])
    with open(path, "ab") as f:
        f.write(b'[1, {"si')
    with open(path, "rb") as f:
        content = f.read()
    output, another = path.removesuffix(".partial.jsonl"), {**RUN, key: "another"}
    for function in (open_partial_results, lambda *args: list(read_partial_results(*args))):
        with pytest.raises(ValueError, match=f"{re.escape(path)}.* another {key}"):
            function(output, another)
    with open(path, "rb") as f:
        assert f.read() == content


@pytest.mark.parametrize(
    "content",
    [b"notes of mine", b"notes\nof mine\n", b'["something else"]\n', b"{}\nnotes", b"\xff\xfe\x00"],
)
def test_a_file_of_something_else_stays(path, content):
    with open(path, "wb") as f:
        f.write(content)
    with pytest.raises(ValueError, match="partial.jsonl is in the way"):
        open_partial_results(path.removesuffix(".partial.jsonl"), RUN)
    with open(path, "rb") as f:
        assert f.read() == content


def test_what_masks_depend_on(tmp_path):
    weights, other = tmp_path / "a.pth", tmp_path / "b.json"
    weights.write_text("1")
    other.write_text("2")

    def identity(*opts, json_file=other, replace=False):
        opts = ["MODEL.WEIGHTS", str(weights), *opts]
        cfg = load_config(small_model.CONFIG_FILE, opts)
        return run_identity(SimpleNamespace(cfg=cfg), str(json_file), replace)

    first = identity("MODEL.DEVICE", "cpu")
    assert identity("MODEL.DEVICE", "cpu", "SEED", "9", "OUTPUT_DIR", "x") == first

    def differing(second):
        return [key for key in first if first[key] != second[key]]

    cpu = ("MODEL.DEVICE", "cpu")
    assert differing(identity(*cpu, "INPUT.MIN_SIZE_TEST", "99")) == ["config"]
    assert differing(identity(*cpu, "MODEL.ROI_MASK_HEAD.CAM_ON", "False")) == ["config"]
    assert differing(identity(*cpu, replace=True)) == ["choice of annotations"]
    assert differing(identity(*cpu, json_file=weights)) == ["annotation file"]
    copy = tmp_path / "copy.pth"
    copy.write_text("1")
    assert differing(identity(*cpu, "MODEL.WEIGHTS", str(copy))) == ["model"]
    weights.write_text("another")
    assert differing(identity(*cpu)) == ["model"]
