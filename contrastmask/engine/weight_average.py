"""An exponential moving average of all weights, for evaluation and use."""

import torch
from detectron2.engine import HookBase
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage(HookBase):
    """
    Averages the weights after each step, and keeps the average in checkpoints. At the end of
    training it is written as a model of its own. Not to be confused with the teacher of
    self-training, an average of the mask head that training learns from.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        """
        Args:
            model (nn.Module): what is trained, before anything wraps it. It is copied.
            decay (float): share of its old value that the average keeps in each step; less in the
                first steps, so that it does not remain near the initial weights.
        """
        self._decay = decay
        self._average = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)
        self.checkpointer = None  # that writes `model`; None for no file

    @property
    def model(self) -> torch.nn.Module:
        """nn.Module: with the averaged weights, and averaged statistics of batch normalization."""
        return self._average.module

    def before_train(self):
        if self._average.n_averaged == 0:  # not resumed
            self.after_step()

    def after_step(self):
        model = self.trainer.model
        is_wrapped = isinstance(model, DistributedDataParallel)
        self._average.update_parameters(model.module if is_wrapped else model)

    def after_train(self):
        if self.checkpointer is not None and self.trainer.iter >= self.trainer.max_iter:
            self.checkpointer.save("model_final_ema", iteration=self.trainer.iter - 1)

    def _mix(self, averages, values, _):
        num_before = int(self._average.n_averaged)  # on the CPU
        decay = min(self._decay, (num_before + 1) / (num_before + 10))
        get_ema_multi_avg_fn(decay)(averages, values, num_before)

    def state_dict(self):
        return self._average.state_dict()

    def load_state_dict(self, state_dict):
        self._average.load_state_dict(state_dict)
