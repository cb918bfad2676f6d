"""
Several processes, as `Trainer` sets them up: no hang, and the gradient is the mean over processes
of what each gives alone; evaluation gives the numbers of one process.
"""

import json
import math
import socket

import distributed_scenarios as scenarios
import pytest
import small_model
import torch
from detectron2.utils.events import EventStorage
from torch.multiprocessing import ProcessRaisedException

from contrastmask.engine import Trainer, launch
from contrastmask.engine.validation_losses import ValidationLosses

TOLERANCE = 1e-9  # relative
NUM_IMAGES = 3  # of the evaluation: more than 2 processes can share equally, fewer than 4


def _setup(world_size, backend):
    """A run with `world_size` processes and a backend of torch.distributed."""
    marks = [pytest.mark.slow] if world_size > 2 else []
    if backend == "nccl":
        reason = f"needs {world_size} GPUs"
        marks.append(pytest.mark.skipif(torch.cuda.device_count() < world_size, reason=reason))
    return pytest.param((world_size, backend), marks=marks, id=f"{world_size} {backend}")


SETUPS = [_setup(n, backend) for backend in ("gloo", "nccl") for n in (2, 4)]


@pytest.fixture(scope="module")
def opts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    small_model.write_data(folder, NUM_IMAGES)
    return [
        *small_model.options(folder, "distributed_data"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.MAX_ITER", "3", "TEST.REPORT", "False"),
        *("OUTPUT_DIR", str(folder)),
    ]


@pytest.fixture(scope="module", params=SETUPS)
def finished(request, opts, tmp_path_factory):
    """(number of processes, backend, folder with their results, error that ended them)"""
    world_size, backend = request.param
    folder = tmp_path_factory.mktemp("processes")
    (folder / "training").mkdir()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{s.getsockname()[1]}"
    opts = [*opts, "SOLVER.IMS_PER_BATCH", str(world_size)]
    with pytest.MonkeyPatch.context() as patch:
        # Threads of several processes that wait for each other's cores are many times slower.
        patch.setenv("OMP_NUM_THREADS", "1")
        if backend == "gloo":  # also where there are GPUs
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            patch.setattr(torch.cuda, "is_available", lambda: False)
        else:
            opts += ["MODEL.DEVICE", "cuda"]
        with pytest.raises(ProcessRaisedException) as error:
            launch(scenarios.run_process, world_size, dist_url=address, args=(opts, folder))
    assert (folder / "images.json").exists(), error.value  # else they did not get to the end
    return world_size, backend, folder, str(error.value)


@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_gradients_are_means_over_processes(finished, opts, name):
    world_size, backend, folder, _ = finished
    results = [torch.load(folder / f"results{rank}.pth") for rank in range(world_size)]
    device = ["MODEL.DEVICE", "cuda" if backend == "nccl" else "cpu"]
    with scenarios.float64():
        model = Trainer.build_model(scenarios.config(name, [*opts, *device]))
        model.load_state_dict(torch.load(folder / f"{name}.pth", map_location="cpu"))
        for scenario, kinds in scenarios.SCENARIOS[name].items():
            kinds = [scenarios.kind_of(kinds, rank) for rank in range(world_size)]
            alone = [
                scenarios.losses_and_gradients(model, scenario, kind, rank)
                for rank, kind in enumerate(kinds)
            ]
            found = [result[name, scenario] for result in results]
            assert_same_losses(scenario, kinds, alone, found)
            assert_mean_gradients(scenario, kinds, alone, found)


def assert_same_losses(scenario, kinds, alone, found):
    for rank, (kind, (expected, _), (losses, _)) in enumerate(zip(kinds, alone, found)):
        where = f"{scenario}, process {rank}"
        assert all(math.isfinite(x) for x in losses.values()), where
        assert losses == pytest.approx(expected, rel=TOLERANCE), where
        for name, zero in scenarios.ZERO.items():
            assert name not in losses or (losses[name] == 0) == (kind in zero), (where, name)


def assert_mean_gradients(scenario, kinds, alone, found):
    for name in alone[0][1]:
        mean = sum(gradients[name] for _, gradients in alone) / len(alone)
        largest = mean.abs().max()
        assert largest > 0 or "full" not in kinds, f"{scenario}: no gradient of {name}"
        for rank, (_, gradients) in enumerate(found):
            assert gradients.keys() == alone[0][1].keys()
            difference = (gradients[name] - mean).abs().max()
            where = f"{scenario}, process {rank}, {name}: {difference:.3g} of {largest:.3g}"
            assert difference <= TOLERANCE * largest, where


@pytest.mark.parametrize("num_parts", [1, 2])
def test_accumulation_equals_more_processes(finished, opts, tmp_path, num_parts):
    """W processes with N parts each train like one process with W * N parts."""
    world_size, backend, folder, _ = finished
    total = world_size * num_parts
    opts = [*opts, "OUTPUT_DIR", str(tmp_path)]
    opts += ["MODEL.DEVICE", "cuda" if backend == "nccl" else "cpu"]
    with scenarios.float64():
        expected_losses, expected, _ = scenarios.train_in_parts(opts, total, total)
    losses, weights, exchanged = torch.load(folder / f"parts{num_parts}_0.pth")
    assert exchanged == ([False] * (num_parts - 1) + [True]) * 3  # iterations
    assert losses.keys() == expected_losses.keys() and len(losses["total_loss"]) == 3
    for name, values in losses.items():
        assert values == pytest.approx(expected_losses[name], rel=1e-5), name  # float32 in the log
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=TOLERANCE, atol=1e-8, msg=name)


def test_all_processes_stop_early(finished, opts, tmp_path):
    """At the same step, with the same average and the validation losses of one process."""
    world_size, _, folder, _ = finished
    stopped = [torch.load(folder / f"stopped{rank}.pth") for rank in range(world_size)]
    (iteration, losses, weights), *others = stopped
    assert iteration == 4
    for other in others:
        assert other[:2] == (iteration, losses)
        for name, value in other[2].items():
            torch.testing.assert_close(value, weights[name], msg=name)
    names = ("model_best.pth", "model_final.pth", "model_final_ema.pth")
    saved = [torch.load(folder / "stopped" / x, weights_only=True) for x in names]
    assert [x["iteration"] for x in saved] == [1, 3, 3]
    with scenarios.float64():
        trainer = scenarios.validating_trainer([*opts, "OUTPUT_DIR", str(tmp_path)])
        trainer.evaluated_model.load_state_dict(saved[2]["model"])
        (hook,) = [x for x in trainer._hooks if isinstance(x, ValidationLosses)]
        with EventStorage(iteration) as trainer.storage:
            hook._measure()
    expected = {name: value for name, (value, _) in trainer.storage.latest().items()}
    assert losses == pytest.approx(expected, rel=TOLERANCE) and len(losses) > 5


def test_evaluation_equals_that_of_one_process(finished, opts, tmp_path):
    _, _, folder, _ = finished
    scenarios.evaluate(opts, tmp_path)
    expected = json.loads((tmp_path / "results.json").read_text())
    assert 1 < expected["mask"]["all"]["AP"] < 99
    assert json.loads((folder / "evaluation" / "results.json").read_text()) == expected


def test_nan_on_one_process(finished):
    """All processes end; the error is that of the process with the NaN, with its images."""
    world_size, _, folder, message = finished
    assert "loss_contrastive is nan" in message
    assert f"Iteration 1, process 1 of {world_size}" in message
    (name,) = json.loads((folder / "images.json").read_text())
    assert name in message
    assert not list((folder / "training").glob("*.pth"))
