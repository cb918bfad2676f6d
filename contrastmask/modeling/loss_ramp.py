"""The ramp of the contrastive loss's weight over training."""

from detectron2.config import configurable


class LossRamp:
    """
    Stepwise growing factor of a loss weight (authors' code: 0.25, 0.25, 0.5, 0.75, then 1 in steps
    of one twelfth of training). A function of the iteration alone, so a resumed run continues it.
    """

    @configurable
    def __init__(self, *, max_iter, start, num_steps, full_step):
        """
        Args:
            max_iter (int): iterations of the whole training.
            start (float): smallest factor.
            num_steps (int): number of equal steps training is cut into.
            full_step (int): step, counted from 0, from which on the factor is 1.

        Raises:
            ValueError: if a number is out of range.
        """
        if max_iter < 1 or num_steps < 1 or full_step < 1 or not 0 <= start <= 1:
            raise ValueError(
                "the ramp needs SOLVER.MAX_ITER, MODEL.ROI_CONTRASTIVE_HEAD.RAMP_STEPS and "
                "RAMP_FULL_STEP of at least 1 and RAMP_START between 0 and 1, not "
                f"{max_iter}, {num_steps}, {full_step} and {start}"
            )
        self.max_iter = max_iter
        self.start = start
        self.num_steps = num_steps
        self.full_step = full_step

    @classmethod
    def from_config(cls, cfg):
        head = cfg.MODEL.ROI_CONTRASTIVE_HEAD
        return {
            "max_iter": cfg.SOLVER.MAX_ITER,
            "start": head.RAMP_START,
            "num_steps": head.RAMP_STEPS,
            "full_step": head.RAMP_FULL_STEP,
        }

    def __call__(self, iteration):
        """
        Args:
            iteration (int): current iteration, from 0.

        Returns:
            float: factor between `start` and 1.
        """
        step = iteration * self.num_steps // self.max_iter
        return min(max(self.start, step / self.full_step), 1.0)
