"""Training in bfloat16 on the built-in data."""

import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from contrastmask.data import ContrastMaskDatasetMapper
from contrastmask.engine import load_config
from contrastmask.solver import build_optimizer

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_model import CONFIG_FILE, options, write_data  # noqa: E402


@pytest.mark.slow
def test_500_steps_without_nan(tmp_path):
    num_steps = 500
    write_data(tmp_path, num_images=20)
    overrides = ["SOLVER.MAX_ITER", str(num_steps), "SOLVER.IMS_PER_BATCH", "2"]
    overrides += ["INPUT.MIN_SIZE_TRAIN", "(64,)"]
    cfg = load_config(CONFIG_FILE, [*options(tmp_path, "autocast_shapes"), *overrides])
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    loader = build_detection_train_loader(cfg, mapper=ContrastMaskDatasetMapper(cfg))
    totals = []
    with EventStorage() as storage:
        for _, batch in zip(range(num_steps), loader):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses = model(batch)
            assert all(torch.isfinite(x) for x in losses.values()), (storage.iter, losses)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            assert all(torch.isfinite(x).all() for x in gradients), storage.iter
            optimizer.step()
            totals.append(sum(losses.values()).item())
            storage.step()
    assert len(totals) == num_steps and sum(totals[-50:]) < sum(totals[:50])
