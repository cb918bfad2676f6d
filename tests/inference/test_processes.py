"""tools/predict_masks.py in several processes, and what an interruption leaves."""

import json
import os

import interrupted_processes
import predict_masks
import pytest
import small_model
import torch

NUM_IMAGES, MARK = 7, 0.1234


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Folder with data and a checkpoint, and what one process writes."""
    folder = tmp_path_factory.mktemp("processes")
    small_model.write_odd_data(folder, num_images=NUM_IMAGES)
    small_model.write_checkpoint(folder, small_model.options(folder, "processes"))
    path = folder / "annotations" / "train.json"
    content = json.loads(path.read_text())
    for x in content["annotations"]:
        x.pop("segmentation", None)
    path.write_text(json.dumps(content))
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # like two processes, for rounding
    yield folder, predict(folder, folder / "one.json")[1]
    torch.set_num_threads(threads)


def predict(folder, output, *args):
    """Exit code, and the bytes of the output if there is one."""
    paths = {
        "--weights": folder / "model_final.pth",
        "--json": folder / "annotations" / "train.json",
        "--images": folder / "train",
        "--output": output,
    }
    args = [*(str(x) for pair in paths.items() for x in pair), "--batch-size", "2", *args]
    code = predict_masks.main([*args, "MODEL.DEVICE", "cpu"])
    return code, output.read_bytes() if output.exists() else None


def mark(journal):
    """Change a score in partial results, which tells that they are used; returns its index."""
    run, first, *others = journal.read_text().splitlines()
    index, mask, _ = json.loads(first)
    journal.write_text("\n".join([run, json.dumps([index, mask, MARK]), *others, ""]))
    return index


@pytest.fixture
def two_processes(monkeypatch):
    """Without GPUs, also where there are some."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return ["--num-processes", "2"]


@pytest.mark.parametrize(
    "end, code, reason",
    [
        ("killed", -9, "process 1"),
        pytest.param("failing", 1, "the disk", marks=pytest.mark.slow),
    ],
)
def test_another_run_goes_on(
    setting, tmp_path, two_processes, monkeypatch, capfd, end, code, reason
):
    """One process goes on after one of two was killed; two after an error in one."""
    folder, expected = setting
    output = tmp_path / "masks.json"
    with monkeypatch.context() as patch:
        patch.setattr(predict_masks, "run", getattr(interrupted_processes, end))
        assert predict(folder, output, *two_processes) == (code, None)
    (line,) = [x for x in capfd.readouterr().err.splitlines() if "error" in x.lower()]
    assert line.startswith("predict_masks.py: error: ") and reason in line
    names = {"masks.json.partial.jsonl", "masks.json.partial-1.jsonl"}
    assert {x.name for x in tmp_path.iterdir()} == names
    expected = json.loads(expected)
    for name in names:
        expected["annotations"][mark(tmp_path / name)]["mask_score"] = MARK

    again = two_processes if end == "failing" else ()
    assert predict(folder, output, *again) == (0, json.dumps(expected).encode())
    assert list(tmp_path.iterdir()) == [output]
