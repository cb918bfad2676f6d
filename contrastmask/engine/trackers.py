"""Experiment trackers that also receive what Detectron2 logs: Weights & Biases, MLflow."""

import importlib.util
import logging
import math
import os
import re
from collections import defaultdict

import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage

logger = logging.getLogger(__name__)


class Tracker(HookBase, EventWriter):
    """
    A writer of events, which is also a hook: its run begins with the training, and a resumed
    training goes on with the same run. Only the main process has a run.
    """

    package = ""  # to import, and to install

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg (CfgNode): of the training; it is stored with the run.

        Raises:
            ImportError: if the package is not installed.
        """
        if importlib.util.find_spec(self.package) is None:
            raise ImportError(
                f"TRACKERS names {self.package}, which is not installed: pip install {self.package}"
            )
        self.config = yaml.safe_load(cfg.dump())
        self.folder = cfg.OUTPUT_DIR
        self.run_id = None
        self._has_begun = False
        self._last_write = -1

    def begin(self):
        """Begin a run, or go on with the one named `run_id`, and set that."""
        raise NotImplementedError

    def log(self, scalars: dict[str, float], iteration: int):
        """Store numbers of one iteration; later calls have later ones."""
        raise NotImplementedError

    def end(self, succeeded: bool):
        """End the run."""
        raise NotImplementedError

    def before_train(self):
        """
        Raises:
            ValueError: if the tracker refuses the run.
        """
        if not comm.is_main_process():
            return
        try:
            self.begin()
        except Exception as error:  # each package has its own
            raise ValueError(f"TRACKERS: {self.package} cannot begin a run: {error}") from error
        self._has_begun = True

    def write(self):
        new = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(20).items():
            if iteration > self._last_write and math.isfinite(value):
                new[iteration][name] = value
        if self._has_begun:
            for iteration in sorted(new):
                self._log_or_complain(new[iteration], iteration)

    def _log_or_complain(self, scalars, iteration):
        self._last_write = iteration
        try:
            self.log(scalars, iteration)
        except Exception as error:  # training does not end with the tracker's server
            logger.error(f"{self.package} has not stored iteration {iteration}: {error}")

    def close(self):
        if self._has_begun:
            self.end(self.trainer.iter >= self.trainer.max_iter)

    def state_dict(self):
        return {"run_id": self.run_id} if self.run_id else {}

    def load_state_dict(self, state_dict):
        self.run_id = state_dict["run_id"]


class WandbTracker(Tracker):
    """Weights & Biases; the environment (``WANDB_PROJECT``, ``WANDB_MODE``) says where."""

    package = "wandb"

    def begin(self):
        import wandb

        self._run = wandb.init(
            id=self.run_id,
            resume="allow" if self.run_id else None,
            name=os.path.basename(os.path.abspath(self.folder)),
            dir=self.folder,
            config=self.config,
        )
        self.run_id = self._run.id

    def log(self, scalars, iteration):
        self._run.log(scalars, step=iteration, commit=True)

    def end(self, succeeded):
        self._run.finish(exit_code=0 if succeeded else 1)


class MLflowTracker(Tracker):
    """MLflow; the environment (``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``) says where."""

    package = "mlflow"

    def begin(self):
        import mlflow

        self._mlflow = mlflow
        name = os.path.basename(os.path.abspath(self.folder))
        run = mlflow.start_run(run_id=self.run_id, run_name=None if self.run_id else name)
        self.run_id = run.info.run_id
        mlflow.log_dict(self.config, "config.yaml")

    def log(self, scalars, iteration):
        # Class names may have other characters than MLflow takes.
        named = {re.sub(r"[^/\w.\- :]", "_", name): x for name, x in scalars.items()}
        self._mlflow.log_metrics(named, step=iteration)

    def end(self, succeeded):
        self._mlflow.end_run("FINISHED" if succeeded else "FAILED")


TRACKERS = {"wandb": WandbTracker, "mlflow": MLflowTracker}


def build_trackers(cfg: CfgNode) -> list[Tracker]:
    """
    Args:
        cfg (CfgNode): ``TRACKERS`` names them.

    Raises:
        ValueError: for an unknown name.
        ImportError: if a package is not installed.
    """
    unknown = [x for x in cfg.TRACKERS if x not in TRACKERS]
    if unknown:
        raise ValueError(f"TRACKERS: {unknown[0]!r} is unknown, choose from {', '.join(TRACKERS)}")
    return [TRACKERS[name](cfg) for name in cfg.TRACKERS]
