"""Writing checkpoints, and resuming where one is damaged."""

import errno
import os
import random

import pytest
import torch
from torch import nn

from contrastmask import atomic_files
from contrastmask.checkpoint import ContrastMaskCheckpointer


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints, whose weights are 0, 1 and 2."""
    checkpointer = ContrastMaskCheckpointer(nn.Linear(1, 1), str(tmp_path))
    for i in range(3):
        nn.init.constant_(checkpointer.model.weight, i)
        checkpointer.save(f"model_{i:07d}")
    return tmp_path


def fill_disk(monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_files.os, "fsync", fail)


def resume(folder):
    checkpointer = ContrastMaskCheckpointer(nn.Linear(1, 1), str(folder))
    checkpointer.resume_or_load("", resume=True)
    return checkpointer.model.weight.item()


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_full_disk_leaves_everything_as_it_was(folder, monkeypatch):
    before = contents(folder)
    checkpointer = ContrastMaskCheckpointer(nn.Linear(1, 1), str(folder))
    fill_disk(monkeypatch)
    for name in ("model_0000003", "model_0000002"):  # a new file and one that exists
        with pytest.raises(OSError, match=f"No space left.*{name}.pth'"):
            checkpointer.save(name)
        assert contents(folder) == before


def test_torch_hides_the_reason(tmp_path):
    """torch.save raises RuntimeError where the file it writes to raises OSError."""
    (tmp_path / "model.pth.unfinished").symlink_to("/dev/full")
    checkpointer = ContrastMaskCheckpointer(nn.Linear(100, 100), str(tmp_path))
    with pytest.raises(OSError, match="No space left.*model.pth'"):
        checkpointer.save("model")
    assert not list(tmp_path.iterdir())


def test_other_errors_of_saving_are_not_hidden(tmp_path):
    class Broken(nn.Linear):
        def state_dict(self, *args, **kwargs):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        ContrastMaskCheckpointer(Broken(1, 1), str(tmp_path)).save("model")


def test_what_a_killed_process_left_is_overwritten(folder):
    (folder / "model_0000003.pth.unfinished").write_bytes(b"half")
    assert resume(folder) == 2
    ContrastMaskCheckpointer(nn.Linear(1, 1), str(folder)).save("model_0000003")
    assert not list(folder.glob("*.unfinished"))
    assert (folder / "last_checkpoint").read_text() == "model_0000003.pth"


def damage(path, how):
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        content = path.read_bytes()
        at = content.index(torch.full((1,), 2.0).numpy().tobytes())
        path.write_bytes(content[:at] + b"\1" + content[at + 1 :])


@pytest.mark.parametrize("how", ["missing", "empty", "cut off", "another byte"])
def test_damaged_checkpoint(folder, how, caplog):
    """The one before it is used, and the log says so."""
    damage(folder / "model_0000002.pth", how)
    assert resume(folder) == 1
    assert "Cannot resume: checkpoint " in caplog.text and "model_0000002.pth" in caplog.text
    assert f"older checkpoint {folder / 'model_0000001.pth'}" in caplog.text
    damage(folder / "model_0000001.pth", "cut off")
    assert resume(folder) == 0


def test_any_damaged_byte(folder):
    """The last checkpoint is used as it was written, or the one before it."""
    path = folder / "model_0000002.pth"
    whole = path.read_bytes()
    rng = random.Random(0)
    used = []
    for at in rng.sample(range(len(whole)), 150):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ rng.randrange(1, 256)]) + whole[at + 1 :])
        used.append(resume(folder))
    assert set(used) == {1, 2}


def test_only_older_checkpoints_take_its_place(folder):
    """A newer one may be of an earlier training in the same folder."""
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    damage(folder / "model_0000001.pth", "cut off")
    assert resume(folder) == 0
    (folder / "last_checkpoint").write_text("model_final.pth")  # comes after all of them
    assert resume(folder) == 2
    (folder / "last_checkpoint").write_text("model_best.pth")  # may come from anywhere
    with pytest.raises(FileNotFoundError, match="model_best.pth.*last_checkpoint"):
        resume(folder)


def test_no_checkpoint_is_good(folder):
    for i in range(3):
        damage(folder / f"model_{i:07d}.pth", "cut off")
    with pytest.raises(ValueError, match="model_0000002.pth.*last_checkpoint.*--resume"):
        resume(folder)


def test_a_checkpoint_of_another_model_is_an_error(folder):
    """Not a reason to look for an older one."""
    torch.save({"model": {"weight": torch.zeros(3, 3)}}, folder / "model_0000002.pth")
    with pytest.raises(ValueError, match="does not fit"):
        resume(folder)
