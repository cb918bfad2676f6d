"""Gradient accumulation: one step of the optimizer from several parts of its batch."""

import time
from contextlib import nullcontext

import torch
from detectron2.engine import AMPTrainer
from torch.nn.parallel import DistributedDataParallel


class Accumulating:
    """
    A mix-in for Detectron2's training steps. The gradient is the mean over the parts, as
    :class:`DistributedDataParallel` takes it over processes: `num_parts` parts are to one process
    what as many more processes would be. Losses are logged as their means over the parts; other
    numbers that the model stores are there once for each part.
    """

    def __init__(self, model: torch.nn.Module, *args, num_parts: int = 1, **kwargs):
        """
        Args:
            model (nn.Module): returns a dict of losses.
            num_parts (int): batches of the data loader in a step; 1 is Detectron2's step.
            args, kwargs: as in Detectron2's class.
        """
        super().__init__(model, *args, **kwargs)
        self.num_parts = num_parts

    def run_step(self):
        if self.num_parts == 1:
            super().run_step()
            return
        assert self.model.training, "model was changed to eval mode"
        scaler = getattr(self, "grad_scaler", None)
        totals, data_time = {}, 0.0
        self.optimizer.zero_grad()
        for part in range(1, self.num_parts + 1):
            start = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            with self._gradients_stay_here(part < self.num_parts):
                with self._autocast():
                    losses = self.model(data)
                loss = sum(losses.values()) / self.num_parts
                (scaler.scale(loss) if scaler else loss).backward()
            for name, value in self._check_losses(losses).items():
                totals[name] = totals.get(name, 0.0) + value
        means = {name: total / self.num_parts for name, total in totals.items()}
        self._write_metrics(means, data_time)
        if scaler:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.step()

    def _check_losses(self, losses):
        return {name: value.detach() for name, value in losses.items()}

    def _gradients_stay_here(self, stay):
        """Only with the last part processes exchange gradients."""
        is_distributed = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if stay and is_distributed else nullcontext()

    def _autocast(self):
        if not isinstance(self, AMPTrainer):
            return nullcontext()
        return torch.autocast("cuda", dtype=getattr(self, "precision", torch.float16))
