"""Detectron2's training steps; where a loss is not finite, the error says which and on what."""

import math

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm


class _LossChecking:
    """
    Stops at a NaN or infinite loss before the optimizer uses its gradient. Each process looks at
    the losses of its own batch, in every iteration; Detectron2's check of their mean stays.
    """

    def __init__(self, model, *args, **kwargs):
        """
        Args:
            model (nn.Module): called with list[dict], Detectron2's form of a batch.
            args, kwargs: as in Detectron2's class.
        """
        super().__init__(model, *args, **kwargs)
        self._batch = _BatchNames()
        model.register_forward_pre_hook(self._batch)

    def run_step(self):
        """
        Raises:
            FloatingPointError: for a loss, or a prediction of the RPN, that is not finite. Names
                the loss, the iteration, and the files and ids of this process's images.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error}\nIteration {self.iter}, process {comm.get_rank()} of "
                f"{comm.get_world_size()}. Images of its batch: {self._batch}"
            ) from error

    def _write_metrics(self, loss_dict, data_time, *args, **kwargs):
        # One transfer from the device, which spares Detectron2 its own for each loss.
        values = torch.stack([x.detach().float() for x in loss_dict.values()]).cpu()
        bad = [f"{k} is {v}" for k, v in zip(loss_dict, values.tolist()) if not math.isfinite(v)]
        if bad:
            raise FloatingPointError(f"Loss not finite: {', '.join(bad)}.")
        super()._write_metrics(dict(zip(loss_dict, values)), data_time, *args, **kwargs)


class LossCheckingTrainer(_LossChecking, SimpleTrainer):
    """:class:`SimpleTrainer` that stops at a loss that is not finite."""


class LossCheckingAMPTrainer(_LossChecking, AMPTrainer):
    """
    :class:`AMPTrainer` that stops at a loss that is not finite. Infinite gradients, which come from
    the scale of the loss, are still skipped by the gradient scaler.
    """


class _BatchNames:
    """Forward pre-hook of a model that remembers the names of the images it was last given."""

    def __init__(self):
        self.names = []

    def __call__(self, module, inputs):
        (batch,) = inputs
        self.names = [(x.get("file_name"), x.get("image_id")) for x in batch]

    def __str__(self):
        return ", ".join(f"{name} (image id {image_id})" for name, image_id in self.names)
