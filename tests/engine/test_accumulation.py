"""A step in parts: what equals that of the whole batch, and what is that of as many processes."""

import distributed_scenarios as scenarios
import pytest
import small_model
import torch
from detectron2.utils.events import EventStorage

from contrastmask.engine import Trainer
from contrastmask.engine.loss_checking import LossCheckingAMPTrainer, LossCheckingTrainer

# Losses that are sums over images, divided by a number that is the same for every image.
OF_IMAGES = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")


class Chosen(torch.nn.Module):
    """Some of a model's losses, all of which it keeps."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names, self.losses = model, names, []

    def forward(self, batch):
        torch.manual_seed(0)
        losses = self.model(batch)
        self.losses.append({name: value.item() for name, value in losses.items()})
        return {name: losses[name] for name in self.names}


def step(model, names, parts):
    """Returns the losses of each part, the gradients, and the event storage."""
    chosen = Chosen(model.train(), names)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    trainer = LossCheckingTrainer(chosen, parts, optimizer, num_parts=len(parts))
    with EventStorage(7) as storage:
        trainer.iter = 7
        trainer.run_step()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return chosen.losses, gradients, storage


def test_equals_the_whole_batch(tmp_path, monkeypatch):
    """Where losses are of images; the mask loss is a mean over RoIs, of which parts have more."""
    # The same RoIs are sampled, whatever else is in the batch.
    monkeypatch.setattr(torch, "randperm", lambda n, **kwargs: torch.arange(n))
    small_model.write_data(tmp_path, num_images=1)
    opts = [*small_model.options(tmp_path, "accumulation"), "MODEL.ROI_BOX_HEAD.NORM", "GN"]
    opts += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"]
    batch = scenarios.make_batch("full", 0) + scenarios.make_batch("half empty", 1)
    with scenarios.float64():
        model = Trainer.build_model(scenarios.config("default", opts))
        ((whole,), expected, _) = step(model, OF_IMAGES, [batch])
        (first, second), found, storage = step(model, OF_IMAGES, [batch[:2], batch[2:]])
    assert found.keys() == expected.keys() and len(found) > 50
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)
    for name in OF_IMAGES:
        mean = (first[name] + second[name]) / 2
        assert mean == pytest.approx(whole[name], rel=1e-9) and first[name] != second[name]
        assert storage.latest()[name] == (pytest.approx(mean, rel=1e-6), 7)
    (a, _), (b, _) = storage.history("mask_head/num_rois").values()
    assert a != b
    weighted = (a * first["loss_mask"] + b * second["loss_mask"]) / (a + b)
    assert weighted == pytest.approx(whole["loss_mask"], rel=1e-9)
    assert (first["loss_mask"] + second["loss_mask"]) / 2 != pytest.approx(whole["loss_mask"], 1e-3)


class Square(torch.nn.Module):
    """Its gradient is the mean of the batch times the weight, 2 at first."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, batch):
        numbers = torch.tensor([x["image_id"] for x in batch], dtype=torch.float32)
        return {"loss_a": self.weight**2 * numbers.mean() / 2, "loss_b": self.weight * 0.0}


def batches(*numbers):
    return [[{"file_name": f"{x}.png", "image_id": x}] for x in numbers]


def test_one_step_of_the_scaled_loss(monkeypatch):
    """Float16 on a GPU, here without the GPU: the scale, and the step that is skipped."""
    model = Square()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    # In float32 the product of this number and the scale is infinite, the number itself is not.
    data = batches(3, 4, 1e36, 4, 5, 6)
    trainer = LossCheckingAMPTrainer(model, data, optimizer, grad_scaler=scaler, num_parts=2)
    weights, scales = [], []
    with EventStorage(0):
        for trainer.iter in range(3):
            trainer.run_step()
            weights.append(model.weight.item())
            scales.append(scaler.get_scale())
    first = 2 - 0.1 * 3.5 * 2
    assert weights == pytest.approx([first, first, first - 0.1 * 5.5 * first])
    assert scales == [2048, 1024, 2048]


def test_a_bad_part_is_named():
    model = Square()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = LossCheckingTrainer(model, batches(3, 4, float("nan"), 5), optimizer, num_parts=4)
    with EventStorage(0), pytest.raises(FloatingPointError, match="loss_a is nan") as error:
        trainer.run_step()
    message = str(error.value)
    assert "nan.png" in message and "4.png" not in message and "5.png" not in message
    assert model.weight.item() == 2
