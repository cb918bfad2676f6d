"""A loss or prediction that is not finite stops the real trainer, before the optimizer steps."""

import math

import pytest
import small_model
import torch
from detectron2.utils.events import EventStorage

from contrastmask.engine import Trainer, load_config
from contrastmask.engine.loss_checking import LossCheckingAMPTrainer

LOSSES = {
    "loss_mask": math.nan,
    "loss_contrastive": math.inf,
    "loss_box_supervision": math.nan,
    "loss_cls": -math.inf,
    "loss_box_reg": math.nan,
    "loss_rpn_cls": math.inf,
    "loss_rpn_loc": math.nan,
}


@pytest.fixture(scope="module")
def opts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loss_checking")
    small_model.write_data(folder, num_images=4)
    return [
        *small_model.options(folder, "loss_checking_data"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "5"),
        *("TEST.REPORT", "False", "OUTPUT_DIR", str(folder)),
    ]


@pytest.fixture(scope="module")
def trainer(opts):
    return Trainer(load_config(small_model.CONFIG_FILE, opts))


@pytest.fixture
def change_losses(trainer):
    """Function: change -> batches seen so far; `change(losses, iteration)` edits each output."""
    handles = []

    def install(change):
        batches = []

        def hook(module, inputs, losses):
            batches.append(inputs[0])
            change(losses, trainer.iter)

        handles.append(trainer._trainer.model.register_forward_hook(hook))
        return batches

    yield install
    for handle in handles:
        handle.remove()


def step(trainer, iteration):
    with EventStorage(iteration) as trainer.storage:
        trainer.iter = iteration
        trainer.run_step()
        return trainer.storage.latest()


def weights(trainer):
    return [p.detach().clone() for p in trainer._trainer.model.parameters()]


def assert_names_images(message, batch):
    assert len(batch) == 2
    for x in batch:
        assert f"{x['file_name']} (image id {x['image_id']})" in message


@pytest.mark.parametrize("bad_iteration", [3, 4])  # the last one is 4
def test_training_stops_at_that_step(opts, tmp_path, bad_iteration):
    trainer = Trainer(load_config(small_model.CONFIG_FILE, [*opts, "OUTPUT_DIR", str(tmp_path)]))
    batches, before = [], []

    def break_one_loss(module, inputs, losses):
        batches.append(inputs[0])
        before[:] = weights(trainer)
        if trainer.iter == bad_iteration:
            losses["loss_mask"] = losses["loss_mask"] * math.nan

    trainer._trainer.model.register_forward_hook(break_one_loss)
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    message = str(error.value)
    assert "loss_mask is nan" in message
    assert f"Iteration {bad_iteration}, process 0 of 1" in message
    assert "loss_contrastive" not in message
    assert len(batches) == bad_iteration + 1
    assert_names_images(message, batches[-1])
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer)))
    assert not (tmp_path / "model_final.pth").exists()
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("name, value", LOSSES.items())
def test_every_loss(trainer, change_losses, name, value):
    batches = change_losses(lambda losses, _: losses.update({name: losses[name] + value}))
    before = weights(trainer)
    with pytest.raises(FloatingPointError, match=f"{name} is {value}") as error:
        step(trainer, 7)
    assert "Iteration 7" in str(error.value)
    assert_names_images(str(error.value), batches[-1])
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer)))


def test_predictions_of_the_rpn(trainer, change_losses, monkeypatch):
    """Detectron2 stops at NaN proposals during the forward pass; the images are named, too."""
    bias = trainer._trainer.model.proposal_generator.rpn_head.objectness_logits.bias
    monkeypatch.setattr(bias, "data", torch.full_like(bias, math.nan))
    batches = []
    model = trainer._trainer.model
    handle = model.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0]))
    with pytest.raises(FloatingPointError, match="contain Inf/NaN") as error:
        step(trainer, 5)
    handle.remove()
    assert "Iteration 5" in str(error.value)
    assert_names_images(str(error.value), batches[-1])


def test_finite_losses_are_written_as_by_detectron2(trainer, change_losses):
    seen = {}
    change_losses(lambda losses, _: seen.update(losses))
    written = step(trainer, 2)
    assert set(LOSSES) == set(seen)
    for name, loss in seen.items():
        assert written[name][0] == loss.item()
    assert written["total_loss"][0] == pytest.approx(sum(x.item() for x in seen.values()))


def test_mixed_precision(monkeypatch):
    """The check of the step with gradient scaling; the scaling itself does nothing on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = _Losses()
    batch = [{"file_name": "a b.png", "image_id": 3}]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    trainer = LossCheckingAMPTrainer(model, [batch] * 2, optimizer, grad_scaler=scaler)
    with EventStorage():
        trainer.run_step()
        after_one = model.weight.item()
        model.factor = math.inf
        with pytest.raises(FloatingPointError, match=r"loss_b is inf[^,]*\n.*a b.png \(image id 3"):
            trainer.run_step()
    assert after_one != 1 and model.weight.item() == after_one


class _Losses(torch.nn.Module):
    factor = 2.0

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch):
        return {"loss_a": self.weight, "loss_b": (self.weight * self.factor).half()}
