"""Output folders that cannot be written to."""

import errno
import os
import re

import pytest
import small_model
import torch
from detectron2.engine import default_argument_parser

import train_net
from contrastmask import atomic_files
from contrastmask.engine import Trainer, load_config, setup
from contrastmask.engine.programs import UserError


@pytest.fixture(scope="module")
def opts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("output_data")
    small_model.write_data(folder, num_images=2)
    small = ["INPUT.MIN_SIZE_TRAIN", "(48,)", "SOLVER.IMS_PER_BATCH", "1"]
    return [*small_model.options(folder, "output_data"), *small]


@pytest.fixture
def parse(opts):
    """Function: output folder -> arguments of train_net.py."""

    def parse(folder):
        arguments = ["--config-file", small_model.CONFIG_FILE, *opts, "OUTPUT_DIR", str(folder)]
        return default_argument_parser().parse_args(arguments)

    return parse


def test_folder_that_cannot_be(parse, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"OUTPUT_DIR.*'{folder}'"):
            train_net.main(parse(folder))


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_folder_without_permission_or_space(parse, tmp_path, monkeypatch, code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    message = f"OUTPUT_DIR.*{os.strerror(code)}.*'{re.escape(str(tmp_path))}'"
    with pytest.raises(OSError, match=message) as error:
        setup(parse(tmp_path))
    assert error.value.errno == code


def test_folder_that_is_made(parse, tmp_path):
    setup(parse(tmp_path / "a" / "b"))
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {"config.yaml", "log.txt"}


def test_full_disk_at_the_end_of_training(opts, tmp_path, monkeypatch):
    """The error names the file; no evaluation of weights that cannot be kept."""
    evaluated = []
    monkeypatch.setattr(Trainer, "test", lambda *args: evaluated.append(args))
    steps = ["SOLVER.MAX_ITER", "3", "SOLVER.CHECKPOINT_PERIOD", "2"]
    cfg = load_config(small_model.CONFIG_FILE, [*opts, *steps, "OUTPUT_DIR", str(tmp_path)])
    trainer = Trainer(cfg)
    save = trainer.checkpointer.save

    def no_space(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save_with_little_space(name, **kwargs):
        with monkeypatch.context() as patch:
            if name == "model_final":
                patch.setattr(atomic_files.os, "fsync", no_space)
            save(name, **kwargs)

    monkeypatch.setattr(trainer.checkpointer, "save", save_with_little_space)
    with pytest.raises(OSError, match="No space left.*model_final.pth'"):
        trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert torch.load(tmp_path / "model_0000001.pth", weights_only=True)["iteration"] == 1
    assert not evaluated
