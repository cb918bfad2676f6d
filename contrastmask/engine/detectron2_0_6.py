"""
What Detectron2 0.6 lacks and its main branch has. To drop 0.6, delete this file and import
``launch`` and ``DefaultTrainer`` from ``detectron2.engine``, ``create_local_process_group`` from
``detectron2.utils.comm``.
"""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2 import engine
from detectron2.engine.launch import _find_free_port
from detectron2.utils import comm

_IS_0_6 = "state_dict" not in vars(engine.DefaultTrainer)


class _DefaultTrainer(engine.DefaultTrainer):
    """Checkpoints with the optimizer and the scale of mixed precision."""

    def state_dict(self):
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])


def _launch(main_func, num_gpus, num_machines=1, machine_rank=0, dist_url=None, args=()):
    """Several processes without GPUs, which talk through gloo."""
    if torch.cuda.is_available() or num_gpus * num_machines <= 1:
        engine.launch(main_func, num_gpus, num_machines, machine_rank, dist_url, args)
    else:
        if dist_url == "auto":
            dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
        worker_args = (main_func, num_gpus, num_machines, machine_rank, dist_url, args)
        mp.spawn(_cpu_worker, nprocs=num_gpus, args=worker_args)


def _cpu_worker(local_rank, main_func, num_local, num_machines, machine_rank, dist_url, args):
    first = machine_rank * num_local
    world_size = num_machines * num_local
    dist.init_process_group("gloo", dist_url, world_size=world_size, rank=first + local_rank)
    _create_local_process_group(num_local)
    comm.synchronize()
    main_func(*args)


def _create_local_process_group(num_local):
    """Detectron2 has to know which processes are on this machine; they have successive ranks."""
    for begin in range(0, comm.get_world_size(), num_local):
        ranks = range(begin, begin + num_local)
        group = dist.new_group(list(ranks))
        if comm.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


DefaultTrainer = _DefaultTrainer if _IS_0_6 else engine.DefaultTrainer
launch = _launch if _IS_0_6 else engine.launch
create_local_process_group = getattr(
    comm, "create_local_process_group", _create_local_process_group
)
