"""Output folders that cannot be written to, and metrics of a resumed training."""

import errno
import json
import os
from types import SimpleNamespace

import pytest
import small_model
import torch
from detectron2.engine import default_argument_parser
from detectron2.utils.events import EventStorage, EventWriter

import train_net
from contrastmask import atomic_files
from contrastmask.engine import Trainer, load_config, metrics_files
from contrastmask.engine.metrics_files import ContinueMetrics, LenientWriter, remove_metrics_from
from contrastmask.output import OutputError, check_output_dir


@pytest.fixture(scope="module")
def opts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("output_data")
    small_model.write_data(folder, num_images=2)
    small = ["INPUT.MIN_SIZE_TRAIN", "(48,)", "SOLVER.IMS_PER_BATCH", "1"]
    return [*small_model.options(folder, "output_data"), *small]


def no_space(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def start(opts, folder):
    arguments = ["--config-file", small_model.CONFIG_FILE, *opts, "OUTPUT_DIR", str(folder)]
    return train_net.main(default_argument_parser().parse_args(arguments))


def test_output_folder_that_cannot_be(opts, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit, match=f"OUTPUT_DIR: {folder} could not be written: .*Set "):
            start(opts, folder)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_folder_without_permission_or_space(tmp_path, monkeypatch, code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("contrastmask.output.tempfile.TemporaryFile", fail)
    with pytest.raises(OutputError) as error:
        check_output_dir(str(tmp_path))
    assert os.strerror(code) in str(error.value) and str(tmp_path) in str(error.value)


def test_folder_that_is_made(tmp_path):
    check_output_dir(str(tmp_path / "a" / "b"))
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_full_disk_at_the_end_of_training(opts, tmp_path, monkeypatch):
    """Training ends with the message; no evaluation of weights that cannot be kept."""
    evaluated = []
    monkeypatch.setattr(Trainer, "test", lambda *args: evaluated.append(args))
    steps = ["SOLVER.MAX_ITER", "3", "SOLVER.CHECKPOINT_PERIOD", "2"]
    cfg = load_config(small_model.CONFIG_FILE, [*opts, *steps, "OUTPUT_DIR", str(tmp_path)])
    trainer = Trainer(cfg)
    save = trainer.checkpointer.save

    def save_with_little_space(name, **kwargs):
        with monkeypatch.context() as patch:
            if name == "model_final":
                patch.setattr(atomic_files.os, "fsync", no_space)
            save(name, **kwargs)

    monkeypatch.setattr(trainer.checkpointer, "save", save_with_little_space)
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    message = str(stop.value)
    assert "Training stopped in iteration 2" in message
    assert "model_final.pth could not be written: No space left" in message
    assert "The last complete one is" in message and "model_0000001.pth" in message
    assert torch.load(tmp_path / "model_0000001.pth", weights_only=True)["iteration"] == 1
    assert not evaluated


def test_full_disk_in_the_evaluation(opts, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "test", no_space)
    cfg = load_config(
        small_model.CONFIG_FILE, [*opts, "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", str(tmp_path)]
    )
    with pytest.raises(SystemExit, match=f"{tmp_path} could not be written: No space left"):
        Trainer(cfg).train()
    assert (tmp_path / "model_final.pth").exists()


def test_metrics_that_cannot_be_written_do_not_end_training(caplog, monkeypatch):
    class Full(EventWriter):
        write = close = no_space

    monkeypatch.setattr(metrics_files.logger, "propagate", True)
    writer = LenientWriter(Full(), "some/folder")
    for _ in range(3):
        writer.write()
    writer.close()
    (record,) = caplog.records
    assert "Full: metrics in some/folder could not be written: No space left" in record.message


def lines(*iterations):
    return "".join(json.dumps({"iteration": i, "loss": 1.0}) + "\n" for i in iterations)


@pytest.mark.parametrize(
    "before, start, after",
    [
        (lines(19, 39, 59), 40, lines(19, 39)),
        (lines(19, 39, 59) + '{"iteration": 7', 40, lines(19, 39)),
        (lines(19, 39) + '{"iteration": 5', 40, lines(19, 39)),
        (lines(19, 39), 40, lines(19, 39)),
        # An earlier training in the same folder.
        (lines(19, 39, 59) + lines(19, 39), 20, lines(19, 39, 59) + lines(19)),
        ("", 40, ""),
    ],
)
def test_metrics_of_a_resumed_training(tmp_path, before, start, after):
    path = tmp_path / "metrics.json"
    path.write_text(before)
    with open(path, "a") as open_file:
        hook = ContinueMetrics(str(path))
        hook.trainer = SimpleNamespace(start_iter=start)
        hook.before_train()
        open_file.write(lines(start + 1))
    assert path.read_text() == after + lines(start + 1)


def test_metrics_of_an_earlier_training(tmp_path):
    """A training from the beginning does not go on in the file of another one."""
    path = tmp_path / "metrics.json"
    for number in (1, 2, 3):
        with open(path, "a") as open_file:
            hook = ContinueMetrics(str(path))
            hook.trainer = SimpleNamespace(start_iter=0)
            hook.before_train()
            open_file.write(lines(number))
    assert path.read_text() == lines(3)
    assert (tmp_path / "metrics_earlier_1.json").read_text() == lines(1)
    assert (tmp_path / "metrics_earlier_2.json").read_text() == lines(2)
    assert len(list(tmp_path.iterdir())) == 3


def test_number_of_removed_lines(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(lines(19, 39, 59))
    assert remove_metrics_from(str(path), 40) == 1


def test_writers_of_a_trainer(opts, tmp_path):
    cfg = load_config(small_model.CONFIG_FILE, [*opts, "OUTPUT_DIR", str(tmp_path)])
    trainer = Trainer(cfg)
    with EventStorage(5) as storage:
        storage.put_scalar("loss", 2.0)
        for writer in trainer.build_writers():
            writer.write()
            writer.close()
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"iteration": 5, "loss": 2.0}
