"""The best checkpoint by a metric of the evaluation, and the end of training without progress."""

import difflib
import logging
import math
from typing import Callable

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from .validation_losses import PREFIX

logger = logging.getLogger(__name__)


def check_best_metric(
    cfg: CfgNode, build_evaluator: Callable[[CfgNode, str], DatasetEvaluator]
) -> None:
    """
    Args:
        cfg (CfgNode): ``TEST.BEST_METRIC`` and ``TEST.EARLY_STOP_PATIENCE`` are checked.
        build_evaluator (callable): from the config and the name of a dataset to its evaluator.

    Raises:
        ValueError: if the evaluation of ``DATASETS.TEST`` gives no such metric, or none in time.
    """
    metric, patience = cfg.TEST.BEST_METRIC, cfg.TEST.EARLY_STOP_PATIENCE
    if patience > 0 and not (metric and cfg.TEST.EVAL_PERIOD > 0):
        raise ValueError(
            f"TEST.EARLY_STOP_PATIENCE is {patience}: it needs TEST.BEST_METRIC, and a "
            "TEST.EVAL_PERIOD above 0"
        )
    if not metric:
        return
    names = []
    if cfg.TEST.VALIDATION_LOSS_IMAGES:
        names += [f"{PREFIX}{x}" for x in ("total_loss", "loss_mask")[: 1 + cfg.MODEL.MASK_ON]]
    for dataset in cfg.DATASETS.TEST:
        prefix = f"{dataset}/" if len(cfg.DATASETS.TEST) > 1 else ""
        evaluator = build_evaluator(cfg, dataset)
        if not hasattr(evaluator, "metric_names"):
            return  # a subclass has evaluators of its own, which nobody knows
        names += [prefix + x for x in evaluator.metric_names(masks=cfg.MODEL.MASK_ON)]
    if metric not in names:
        close = difflib.get_close_matches(metric, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        groups = ", ".join(x for x in names if "-" not in x.rpartition("/")[2])
        of_class = next((f", and such as {x}" for x in names if "/AP-" in x), "")
        raise ValueError(
            f"TEST.BEST_METRIC is {metric!r}, which is not measured on DATASETS.TEST "
            f"{', '.join(cfg.DATASETS.TEST) or '(none)'}; {hint}There are {groups or 'none'}"
            f"{of_class}"
        )


class BestCheckpointer(hooks.BestCheckpointer):
    """
    Detectron2's hook, which remembers the best value when training is resumed, and can end
    training. In all processes; only the main one writes.
    """

    def __init__(self, eval_period: int, checkpointer, metric: str, *, patience: int = 0):
        """
        Args:
            eval_period (int): as that of the evaluation; iterations.
            checkpointer (Checkpointer): writes model_best.pth.
            metric (str): larger is better, except for validation losses.
            patience (int): end training after so many evaluations in a row without a better value;
                0 for never. Evaluations in which it cannot be measured do not count.
        """
        mode = "min" if metric.startswith(PREFIX) else "max"
        super().__init__(eval_period, checkpointer, metric, mode)
        self._metric, self._patience = metric, patience
        self.num_without_progress = 0

    def before_train(self):
        if self._is_out_of_patience:
            logger.warning(
                f"This training has stopped early: {self._metric} had been best at iteration "
                f"{self.best_iter}. To go on, raise TEST.EARLY_STOP_PATIENCE"
            )
            self.trainer.end_at(self.trainer.start_iter)

    def _best_checking(self):
        storage = self.trainer.storage
        # Only the main process has the results of an evaluation.
        value, _ = comm.all_gather(storage.latest().get(self._metric, (math.nan, 0)))[0]
        if not math.isfinite(value):
            logger.warning(f"This evaluation gives no {self._metric}: it cannot be the best")
            return
        if not comm.is_main_process():
            storage.put_scalar(self._metric, value, smoothing_hint=False)
        best_iter = self.best_iter
        super()._best_checking()
        self.num_without_progress = (
            self.num_without_progress + 1 if self.best_iter == best_iter else 0
        )
        if self._is_out_of_patience and self.trainer.iter < self.trainer.max_iter:
            logger.info(
                f"Training stops early: {self._metric} is not better than at iteration "
                f"{self.best_iter} in {self.num_without_progress} evaluations"
            )
            self.trainer.end_at(self.trainer.iter + 1)

    @property
    def _is_out_of_patience(self):
        return 0 < self._patience <= self.num_without_progress

    def state_dict(self):
        return {
            "metric": self._metric,
            "best_metric": self.best_metric,
            "best_iter": self.best_iter,
            "num_without_progress": self.num_without_progress,
        }

    def load_state_dict(self, state_dict):
        if state_dict["metric"] != self._metric:
            logger.warning(
                f"TEST.BEST_METRIC is {self._metric}, but was {state_dict['metric']}: the best "
                "evaluation is looked for from here on"
            )
            return
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]
        self.num_without_progress = state_dict["num_without_progress"]
