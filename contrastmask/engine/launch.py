"""Start a program in one or several processes, on GPUs or on the CPU."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import launch as launch_on_gpus
from detectron2.utils import comm


def launch(main_func, num_gpus, num_machines=1, machine_rank=0, dist_url=None, args=()):
    """
    Like Detectron2's launcher. Where there is no GPU, `num_gpus` is the number of processes, which
    share the cores of the machine and talk through gloo.

    Args:
        main_func (callable): called as ``main_func(*args)`` in every process.
        num_gpus (int): GPUs or, without GPUs, processes of each machine.
        num_machines (int): machines.
        machine_rank (int): number of this machine, from 0.
        dist_url (str): address at which the processes meet, such as "tcp://127.0.0.1:12345".
        args (tuple): arguments of `main_func`.
    """
    if torch.cuda.is_available() or num_gpus * num_machines <= 1:
        launch_on_gpus(main_func, num_gpus, num_machines, machine_rank, dist_url, args)
    else:
        worker_args = (main_func, num_gpus, num_machines, machine_rank, dist_url, args)
        mp.spawn(_cpu_worker, nprocs=num_gpus, args=worker_args)


def _cpu_worker(
    local_rank, main_func, processes_per_machine, num_machines, machine_rank, dist_url, args
):
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes_per_machine))
    dist.init_process_group(
        backend="gloo",
        init_method=dist_url,
        world_size=num_machines * processes_per_machine,
        rank=machine_rank * processes_per_machine + local_rank,
    )
    # Detectron2 has to know which processes are on this machine.
    for machine in range(num_machines):
        first = machine * processes_per_machine
        group = dist.new_group(list(range(first, first + processes_per_machine)))
        if machine == machine_rank:
            comm._LOCAL_PROCESS_GROUP = group
    try:
        comm.synchronize()
        main_func(*args)
    finally:
        dist.destroy_process_group()
