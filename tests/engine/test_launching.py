"""What a process learns from the environment that a launcher gives it."""

import pytest
import torch

from contrastmask.engine import launch
from contrastmask.engine.launching import StartedProcess

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SLURM = {
    "SLURM_STEP_ID": "0", "SLURM_PROCID": "4", "SLURM_NTASKS": "6", "SLURM_LOCALID": "1",
    "SLURM_NNODES": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
}  # fmt: skip


def test_torchrun():
    found = StartedProcess.from_environment(TORCHRUN)
    assert found == StartedProcess("torchrun", 5, 8, 1, 4)
    both = StartedProcess.from_environment({**SLURM, **TORCHRUN})  # torchrun, started by srun
    assert both == found


def test_slurm():
    assert StartedProcess.from_environment(SLURM) == StartedProcess("srun", 4, 6, 1, 3)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        env = {k: v for k, v in SLURM.items() if k != name}
        with pytest.raises(ValueError, match=f"6 processes, and {name} is not set"):
            StartedProcess.from_environment(env)
    with pytest.raises(ValueError, match="not the same number on each machine"):
        StartedProcess.from_environment({**SLURM, "SLURM_NNODES": "4"})
    with pytest.raises(ValueError, match="not the same number on each machine"):
        StartedProcess.from_environment({**SLURM, "SLURM_LOCALID": "3"})


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"RANK": "3", "WORLD_SIZE": "4"},  # set by something else
        {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        {
            **SLURM,
            "SLURM_PROCID": "0",
            "SLURM_NTASKS": "1",
            "SLURM_LOCALID": "0",
            "SLURM_NNODES": "1",
        },
        {k: v for k, v in SLURM.items() if k != "SLURM_STEP_ID"},  # sbatch without srun
    ],
)
def test_no_launcher(env):
    assert StartedProcess.from_environment(env) is None


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="--num-gpus is 3; there are 2"):
        launch(print, 3)
