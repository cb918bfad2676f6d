"""Training in bfloat16 with the real trainer, on a CPU."""

import json

import pytest
import small_model
import torch

from contrastmask.engine import Trainer, load_config


@pytest.fixture(scope="module")
def opts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed_precision")
    small_model.write_data(folder, num_images=4)
    return [
        *small_model.options(folder, "mixed_precision_data"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3"),
        *("SOLVER.AMP.PRECISION", "bfloat16", "TEST.REPORT", "False"),
    ]


def train(opts, folder, enabled):
    """Returns the losses of each iteration, the trained model, and the types its encoder gave."""
    cfg = load_config(
        small_model.CONFIG_FILE,
        [*opts, "SOLVER.AMP.ENABLED", str(enabled), "OUTPUT_DIR", str(folder)],
    )
    folder.mkdir()
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    types = {True: set(), False: set()}
    trainer.model.roi_heads.contrastive_head.encoder.register_forward_hook(
        lambda module, inputs, output: types[module.training].add(output.dtype)
    )
    losses = []
    trainer.model.register_forward_hook(
        lambda module, inputs, output: losses.append(output) if module.training else None
    )
    trainer.train()
    return losses, trainer.model, types


def test_losses_are_close_and_evaluation_is_in_float32(opts, tmp_path):
    losses, model, types = train(opts, tmp_path / "bfloat16", True)
    expected, _, expected_types = train(opts, tmp_path / "float32", False)
    assert types == {True: {torch.bfloat16}, False: {torch.float32}}
    assert expected_types == {True: {torch.float32}, False: {torch.float32}}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert len(losses) == len(expected) == 3
    for name, value in losses[0].items():
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value, expected[0][name], rtol=0.05, atol=0.01)
    results = json.loads((tmp_path / "bfloat16" / "results.json").read_text())
    assert results["mask"]["base"]["AP"] is not None


@pytest.mark.parametrize(
    "precision, message",
    [
        ("float16", "needs a GPU.*SOLVER.AMP.PRECISION bfloat16"),
        ("float8", "SOLVER.AMP.PRECISION is 'float8'"),
    ],
)
def test_errors_name_the_key(opts, precision, message):
    amp = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", precision]
    with pytest.raises(ValueError, match=message):
        Trainer(load_config(small_model.CONFIG_FILE, [*opts, *amp]))
