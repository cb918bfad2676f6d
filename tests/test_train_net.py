"""train_net.py from the command line, on a few built-in images: train, resume, evaluate."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import small_model
import torch

import train_net
from contrastmask.data.shapes import ShapesParams, write_shapes

ROOT = Path(__file__).parent.parent
SMALL = shlex.split("""
MODEL.WEIGHTS '' MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 32 SEED 5 DATALOADER.NUM_WORKERS 0
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0
MODEL.ROI_BOX_HEAD.NUM_CONV 1 MODEL.ROI_BOX_HEAD.CONV_DIM 32
MODEL.ROI_MASK_HEAD.NUM_CONV 1 MODEL.ROI_MASK_HEAD.CONV_DIM 32
MODEL.ROI_CONTRASTIVE_HEAD.NUM_CONV 1 MODEL.ROI_CONTRASTIVE_HEAD.CONV_DIM 32
INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 TEST.DETECTIONS_PER_IMAGE 10
SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 4 SOLVER.CHECKPOINT_PERIOD 2
""")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Folder with the built-in data, 6 training and 3 validation images of 64 pixels."""
    folder = tmp_path_factory.mktemp("datasets")
    write_shapes(str(folder / "shapes"), ShapesParams(6, 3, 64, 0))
    return folder


def command_of(output, *args, program=ROOT / "train_net.py"):
    flags = [a for a in args if a.startswith("--")]
    overrides = [a for a in args if not a.startswith("--")]
    config = ["--config-file", str(ROOT / "configs/quickstart.yaml")]
    return [str(program), *config, *flags, *SMALL, "OUTPUT_DIR", str(output), *overrides]


def environment(datasets):
    return {**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1"}


def run(datasets, output, *args, cwd=ROOT, **kwargs):
    command = [sys.executable, *command_of(output, *args, **kwargs)]
    options = {"env": environment(datasets), "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(command, cwd=cwd, **options)
    return done.returncode, done.stdout + done.stderr


def logged(output, key):
    lines = [json.loads(x) for x in (output / "metrics.json").read_text().splitlines()]
    return {x["iteration"]: x[key] for x in lines if key in x}


@pytest.fixture(scope="module")
def trained(datasets, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    code, log = run(datasets, output)
    assert code == 0, log
    return output, log


def test_training_evaluates_and_writes_results(trained):
    output, log = trained
    assert (output / "model_final.pth").exists()
    assert "mask AP50" in log and "loss_contrastive" in log and "eta" in log
    results = json.loads((output / "results.json").read_text())
    assert set(results) >= {"box", "mask", "filled_box_mask", "classes"}
    assert set(results["mask"]) >= {"base", "novel", "all", "per_class", "harmonic_mean"}
    assert "star" in results["classes"]["novel"] + results["classes"]["base"]


def test_eval_only_gives_the_same_numbers(datasets, trained, tmp_path):
    output, _ = trained
    weights = str(output / "model_final.pth")
    code, log = run(datasets, tmp_path, "--eval-only", "MODEL.WEIGHTS", weights)
    assert code == 0, log
    first, second = (json.loads((x / "results.json").read_text()) for x in (output, tmp_path))
    assert first == second


def test_eval_only_loads_everything(datasets, tmp_path, monkeypatch):
    """Also what the training began without; a model with random weights is not evaluated."""
    opts = [*small_model.options(datasets / "shapes", "eval_only"), "OUTPUT_DIR", str(tmp_path)]
    opts += ["MODEL.WEIGHTS_EXCLUDE", "['roi_heads.box_predictor']"]
    weights = str(tmp_path / "weights.pth")
    _, expected = small_model.write_weights(weights, opts)
    evaluated = []
    monkeypatch.setattr(train_net.Trainer, "test", lambda cfg, model: evaluated.append(model) or {})

    def evaluate(*more):
        args = ["--eval-only", "--config-file", small_model.CONFIG_FILE, *opts, *more]
        train_net.main(train_net.default_argument_parser().parse_args(args))

    evaluate("MODEL.WEIGHTS", weights)
    (model,) = evaluated
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty.*give the checkpoint"):
        evaluate()


def test_resume_continues_where_training_stopped(datasets, trained, tmp_path):
    output, _ = trained
    (tmp_path / "model_0000001.pth").write_bytes((output / "model_0000001.pth").read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    code, log = run(datasets, tmp_path, "--resume")
    assert code == 0, log
    assert "Starting training from iteration 2" in log
    assert logged(tmp_path, "contrastive/ramp") == logged(output, "contrastive/ramp") == {3: 1.0}
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert state["iteration"] == 3


@pytest.fixture(scope="module")
def trained_by_two(datasets, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained_by_two")
    code, log = run(datasets, output, "--num-gpus=2", f"--dist-url={free_address()}")
    assert code == 0, log
    return output


def test_two_processes(datasets, trained, trained_by_two, tmp_path):
    """The way to 8 GPUs, on the CPU: training works, and evaluation gives the same numbers."""
    state = torch.load(trained_by_two / "model_final.pth", weights_only=True)
    assert state["iteration"] == 3

    weights = str(trained[0] / "model_final.pth")
    evaluation = ["--eval-only", "--num-gpus=2", f"--dist-url={free_address()}"]
    code, log = run(datasets, tmp_path / "eval", *evaluation, "MODEL.WEIGHTS", weights)
    assert code == 0, log
    one, two = (x / "results.json" for x in (trained[0], tmp_path / "eval"))
    assert json.loads(one.read_text()) == json.loads(two.read_text())


def run_together(datasets, commands):
    """
    Args:
        commands (list): of processes that belong together, each with its additional environment.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**environment(datasets), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command, env in commands
    ]
    logs = [x.communicate(timeout=300)[0] for x in processes]
    return [x.returncode for x in processes], "\n".join(logs)


def torchrun(num_machines, num_processes, output, *args):
    port = free_address().rpartition(":")[2]
    options = [f"--nproc-per-node={num_processes}", f"--nnodes={num_machines}"]
    options += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    training = command_of(output, *args)
    return [
        (["-m", "torch.distributed.run", *options, f"--node-rank={machine}", *training], {})
        for machine in range(num_machines)
    ]


def srun(num_processes, output, *args):
    """What srun does on one machine."""
    env = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": str(num_processes), "SLURM_NNODES": "1"}
    env.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=free_address().rpartition(":")[2])
    return [
        (command_of(output, *args), {**env, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)})
        for i in range(num_processes)
    ]


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_launchers(datasets, trained_by_two, tmp_path, launcher):
    """The same losses and results as with --num-gpus."""
    start = {"torchrun": lambda: torchrun(1, 2, tmp_path), "srun": lambda: srun(2, tmp_path)}
    codes, log = run_together(datasets, start[launcher]())
    assert set(codes) == {0}, log
    losses, expected = (logged(x, "total_loss") for x in (tmp_path, trained_by_two))
    assert losses.keys() == expected.keys() == {3}
    assert losses[3] == pytest.approx(expected[3], rel=1e-4)
    assert (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_two_machines(datasets, tmp_path):
    """Two processes on each; the gradient of four images as from four processes on one machine."""
    batch = ["SOLVER.IMS_PER_BATCH", "4"]
    codes, log = run_together(datasets, torchrun(2, 2, tmp_path / "two", *batch))
    assert codes == [0, 0], log
    one = tmp_path / "one"
    code, log = run(datasets, one, "--num-gpus=4", f"--dist-url={free_address()}", *batch)
    assert code == 0, log
    losses = [logged(x, "total_loss")[3] for x in (one, tmp_path / "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_error_under_a_launcher(datasets, tmp_path):
    """One line, whoever started the processes."""
    codes, log = run_together(datasets, srun(2, tmp_path, "--num-gpus=2"))
    assert codes == [1, 1] and "Traceback" not in log
    assert "srun has started 2 processes: leave --num-gpus" in log


def test_damaged_image(datasets, tmp_path):
    """Training ends with one line that names the image; the log file has the traceback."""
    shutil.copytree(datasets, tmp_path / "datasets")
    for path in (tmp_path / "datasets" / "shapes" / "train").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    args = ["--num-gpus=2", f"--dist-url={free_address()}"]
    args += ["DATALOADER.NUM_WORKERS", "1"]
    code, log = run(tmp_path / "datasets", tmp_path / "out", *args)
    assert code == 1 and "Traceback" not in log, log
    (line,) = [x for x in log.splitlines() if "error:" in x]
    assert "train_net.py" in line and "shapes/train/0000" in line
    assert "Traceback" in (tmp_path / "out" / "log.txt").read_text()


def free_address():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{s.getsockname()[1]}"


def test_inside_a_detectron2_tree(datasets, trained, tmp_path):
    """Copied to projects/ContrastMask, started from the root of the tree."""
    project = tmp_path / "projects" / "ContrastMask"
    project.mkdir(parents=True)
    for name in ("contrastmask", "configs", "train_net.py"):
        (project / name).symlink_to(ROOT / name)
    output, _ = trained
    code, log = run(
        datasets,
        tmp_path / "out",
        "--eval-only",
        "MODEL.WEIGHTS",
        str(output / "model_final.pth"),
        program=project / "train_net.py",
        cwd=tmp_path,
    )
    assert code == 0, log
