"""What lets a resumed training go on exactly as it would have without interruption."""

import itertools
import json
import logging
import os
import shutil

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data import TrainingLoader

logger = logging.getLogger(__name__)


class SeedSteps(HookBase):
    """
    Keeps the seed in checkpoints, and lets a :class:`TrainingLoader` begin at the iteration with
    which training begins. Other loaders begin with their first images, and do not seed the steps.
    """

    def __init__(self, seed: int):
        """
        Args:
            seed (int): ``SEED``. If negative a random one.
        """
        self._is_given = seed >= 0
        self.seed = seed if self._is_given else comm.shared_random_seed()

    def before_train(self):
        loader = self.trainer.data_loader
        if isinstance(loader, TrainingLoader):
            loader.begin_at(self.trainer.start_iter, self.seed)

    def state_dict(self):
        return {"seed": self.seed}

    def load_state_dict(self, state_dict):
        if not self._is_given:
            self.seed = state_dict["seed"]
        elif self.seed != state_dict["seed"]:
            logger.warning(
                f"SEED is {self.seed}, but the training began with {state_dict['seed']}: it goes "
                "on with other images and random numbers than without interruption"
            )


class ContinueMetrics(HookBase):
    """
    When a training is resumed, removes from the end of ``metrics.json`` the lines of iterations
    that come again, and one that was not written to its end. When a training begins, moves the
    metrics of an earlier one to ``metrics_earlier_<number>.json``.
    """

    def __init__(self, path: str):
        """
        Args:
            path (str): of ``metrics.json``; need not exist.
        """
        self._path = path

    def before_train(self):
        if not comm.is_main_process() or not os.path.isfile(self._path):
            return
        with open(self._path, "rb") as f:
            lines = f.readlines()
        start = self.trainer.start_iter
        if start == 0 and lines:
            stem, extension = os.path.splitext(self._path)
            numbered = (f"{stem}_earlier_{n}{extension}" for n in itertools.count(1))
            earlier = next(x for x in numbered if not os.path.exists(x))
            shutil.copyfile(self._path, earlier)
            logger.info(f"Moved the metrics of an earlier training to {earlier}")
        while lines and not _is_before(start, lines[-1]):
            lines.pop()
        os.truncate(self._path, sum(map(len, lines)))  # not a new file: a writer has it open


def _is_before(iteration, line):
    try:
        return line.endswith(b"\n") and json.loads(line)["iteration"] < iteration
    except (ValueError, KeyError, TypeError):
        return False
