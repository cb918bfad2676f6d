"""Losses on validation images: what they are, and that a training does not notice them."""

import random

import numpy as np
import pytest
import small_model
import torch
from detectron2.utils.events import EventStorage
from test_no_leak import change_masks

from contrastmask.engine import Trainer, load_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validation_losses")
    small_model.write_data(folder, num_images=5)
    return folder


def make_trainer(data, output, *opts, annotations="train"):
    name = f"validation {data.name} {annotations}"
    opts = [*small_model.options(data, name, annotations), "OUTPUT_DIR", str(output), *opts]
    opts += ["SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(48,64)", "SEED", "3"]
    opts += ["SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2", "TEST.REPORT", "False"]
    opts += ["MODEL.ROI_MASK_HEAD.SELF_TRAINING.LOSS_WEIGHT", "1.0"]
    opts += ["MODEL.ROI_MASK_HEAD.SELF_TRAINING.START", "0.0"]
    torch.manual_seed(1)
    trainer = Trainer(load_config(small_model.CONFIG_FILE, opts))
    trainer.test = lambda cfg, model: {}
    return trainer


def history(trainer, name):
    return trainer.storage.history(name).values()


ON = ["TEST.VALIDATION_LOSS_IMAGES"]


def test_training_does_not_notice(data, tmp_path):
    """Random numbers, weights, statistics of norm layers, teacher; with a loader that seeds not."""
    trainers = []
    for value in ("0", "3"):
        trainer = make_trainer(data, tmp_path / value, *ON, value)
        batches = [next(iter(trainer.data_loader))] * 4
        inner = trainer._trainer
        trainer._trainer = type(inner)(inner.model, batches, inner.optimizer)
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(8)
        trainer.train()
        trainers.append((trainer, random.random(), np.random.rand(), torch.rand(1).item()))
    (without, *drawn), (with_losses, *drawn_too) = trainers
    assert drawn == drawn_too
    assert history(without, "total_loss") == history(with_losses, "total_loss")
    weights = without.model.state_dict()
    for name, value in with_losses.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    iterations = [iteration for _, iteration in history(with_losses, "val/total_loss")]
    assert iterations == [1, 4]
    assert not any(name.startswith("val/") for name in without.storage.histories())


def test_mean_over_images(data, tmp_path):
    """By hand: 3 of 5 images, a batch of two and one of one, at the size of evaluation."""
    trainer = make_trainer(data, tmp_path, *ON, "3", "INPUT.CROP.ENABLED", "True")
    (hook,) = [x for x in trainer._hooks if type(x).__name__ == "ValidationLosses"]
    seen = []
    handle = trainer.model.register_forward_hook(lambda _, inputs, out: seen.append((inputs, out)))
    with EventStorage(2) as trainer.storage:
        hook._measure()
        hook._measure()
    handle.remove()
    batches = [inputs[0] for inputs, _ in seen[:2]]
    assert [[x["image_id"] for x in b] for b in batches] == [[1, 2], [4]]
    assert {x["image"].shape[-1] for b in batches for x in b} == {64}
    assert trainer.model.training
    (first, _), (second, _) = history(trainer, "val/loss_mask")
    losses = [out["loss_mask"].item() for _, out in seen[:2]]
    assert losses[0] != losses[1] and not seen[0][1]["loss_mask"].requires_grad
    assert first == second == pytest.approx((2 * losses[0] + losses[1]) / 3)
    names = {name.removeprefix("val/") for name in trainer.storage.histories()}
    assert names == {"total_loss", *seen[0][1]}
    latest = {k.removeprefix("val/"): v for k, (v, _) in trainer.storage.latest().items()}
    assert latest.pop("total_loss") == pytest.approx(sum(latest.values()))


def test_masks_of_novel_classes_are_not_read(tmp_path):
    losses = []
    for number, novel in enumerate((None, True, False)):
        folder = tmp_path / str(number)
        small_model.write_data(folder, num_images=3)
        if novel is not None:
            assert change_masks(folder / "annotations" / "train_full.json", novel) > 2
        trainer = make_trainer(folder, folder, *ON, "-1", annotations="train_full")
        with EventStorage(2) as trainer.storage:
            next(x for x in trainer._hooks if type(x).__name__ == "ValidationLosses")._measure()
        losses.append({k: v for k, (v, _) in trainer.storage.latest().items()})
    assert losses[0] == losses[1]
    assert losses[0]["val/loss_mask"] != losses[2]["val/loss_mask"]


def test_the_least_loss_is_best(data, tmp_path):
    opts = [*ON, "-1", "TEST.BEST_METRIC", "val/loss_mask"]
    trainer = make_trainer(data, tmp_path, *opts)
    hook = next(x for x in trainer._hooks if type(x).__name__ == "ValidationLosses")
    values = iter([3.0, 5.0])
    hook._measure = lambda: trainer.storage.put_scalar("val/loss_mask", next(values))
    trainer.train()
    saved = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert saved["iteration"] == 1


def test_needs_data(data, tmp_path):
    with pytest.raises(ValueError, match="TEST.VALIDATION_LOSS_IMAGES.*\\(none\\)"):
        make_trainer(data, tmp_path, *ON, "2", "DATASETS.TEST", "()")
