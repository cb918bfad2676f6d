"""
Several processes, for training, evaluation and masks of whole files. The program starts them itself
(`--num-gpus`), or each is started by `torchrun` or by Slurm's `srun`, which tell it in the
environment who it is.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from detectron2.utils import comm

from .detectron2_0_6 import create_local_process_group
from .detectron2_0_6 import launch as spawn


@dataclass(frozen=True)
class StartedProcess:
    """
    One of several processes that a launcher has started.

    launcher (str): its name, for messages.
    rank, world_size (int): number of the process, and how many there are.
    local_rank, local_world_size (int): the same among those of this machine.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> "StartedProcess | None":
        """
        Returns:
            StartedProcess, or None if there is no launcher, or it started one process only.

        Raises:
            ValueError: if Slurm's processes do not know where to meet, or are not spread evenly.
        """
        if "RANK" in env and "LOCAL_WORLD_SIZE" in env:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
            found = cls("torchrun", *(int(env[name]) for name in names))
        elif "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
            names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NNODES")
            rank, world_size, local_rank, num_machines = (int(env[name]) for name in names)
            found = cls("srun", rank, world_size, local_rank, world_size // num_machines)
            missing = [x for x in ("MASTER_ADDR", "MASTER_PORT") if x not in env]
            if world_size > 1 and missing:
                raise ValueError(
                    f"srun has started {world_size} processes, and {' and '.join(missing)} is not "
                    "set: export the name of the first machine and a free port, see "
                    "docs/TRAINING.md"
                )
        else:
            return None
        if found.world_size % found.local_world_size or found.local_rank >= found.local_world_size:
            raise ValueError(
                f"{found.launcher} has started {found.world_size} processes, not the same number "
                "on each machine"
            )
        return found if found.world_size > 1 else None


def launch(
    main_func: Callable,
    num_gpus: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: Sequence = (),
) -> None:
    """
    Detectron2's function of this name, which also joins processes that a launcher has started.

    Args:
        main_func, args: each process calls `main_func(*args)`.
        num_gpus (int): processes to start on this machine.
        num_machines, machine_rank, dist_url: see Detectron2. Processes of one machine need no
            `dist_url`.

    Raises:
        ValueError: if processes are started by a launcher and asked for here, or if there are fewer
            GPUs.
    """
    process = StartedProcess.from_environment(os.environ)
    has_gpu = torch.cuda.is_available()
    if process is None:
        if has_gpu and num_gpus > torch.cuda.device_count():
            raise ValueError(
                f"--num-gpus is {num_gpus}; there are {torch.cuda.device_count()} GPUs"
            )
        spawn(main_func, num_gpus, num_machines, machine_rank, dist_url or "auto", tuple(args))
        return
    if num_gpus > 1 or num_machines > 1:
        raise ValueError(
            f"{process.launcher} has started {process.world_size} processes: leave --num-gpus and "
            "--num-machines out"
        )
    if has_gpu:  # a launcher may let each process see its own GPU only
        torch.cuda.set_device(process.local_rank % torch.cuda.device_count())
    backend = "nccl" if has_gpu else "gloo"
    dist.init_process_group(backend, rank=process.rank, world_size=process.world_size)
    create_local_process_group(process.local_world_size)
    comm.synchronize()
    main_func(*args)
    dist.destroy_process_group()


def share_cores() -> None:
    """Without GPUs, let the processes of a machine use their share of its cores."""
    if comm.get_world_size() > 1 and not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_local_size()))
