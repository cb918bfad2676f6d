"""Detectron2's training steps; where a loss is not finite, the error says which and on what."""

import math

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm

from .accumulation import Accumulating


class _LossChecking:
    """
    Stops at a NaN or infinite loss before the optimizer uses its gradient. Each process looks at
    the losses of its own batch; Detectron2's check of their mean stays.
    """

    def __init__(self, model: torch.nn.Module, *args, **kwargs):
        """
        Args:
            model (nn.Module): called with list[dict], Detectron2's form of a batch.
            args, kwargs: as in Detectron2's class.
        """
        super().__init__(model, *args, **kwargs)
        images = self._images = []  # not `self` in the hook: the model would own its trainer

        def remember(module, inputs):
            images[:] = [f"{x.get('file_name')} (image id {x.get('image_id')})" for x in inputs[0]]

        model.register_forward_pre_hook(remember)

    def run_step(self):
        """
        Raises:
            FloatingPointError: for a loss, or a prediction of the RPN, that is not finite. Names
                the loss, the iteration, and the files and ids of this process's images; where the
                batch has parts, those of the part.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error}\nIteration {self.iter}, process {comm.get_rank()} of "
                f"{comm.get_world_size()}. Images of its batch: {', '.join(self._images)}"
            ) from error

    def _write_metrics(self, loss_dict, data_time, *args, **kwargs):
        super()._write_metrics(self._check_losses(loss_dict), data_time, *args, **kwargs)

    def _check_losses(self, losses):
        """The losses, on the CPU, if they are finite; else an error."""
        # One transfer from the device, which spares Detectron2 its own for each loss.
        values = torch.stack([x.detach().float() for x in losses.values()]).cpu()
        bad = [f"{k} is {v}" for k, v in zip(losses, values.tolist()) if not math.isfinite(v)]
        if bad:
            raise FloatingPointError(f"Loss not finite: {', '.join(bad)}.")
        return dict(zip(losses, values))


class LossCheckingTrainer(_LossChecking, Accumulating, SimpleTrainer):
    """:class:`SimpleTrainer` that stops at a loss that is not finite."""


class LossCheckingAMPTrainer(_LossChecking, Accumulating, AMPTrainer):
    """
    :class:`AMPTrainer` that stops at a loss that is not finite. Infinite gradients, which come from
    the scale of the loss, are still skipped by the gradient scaler.
    """
