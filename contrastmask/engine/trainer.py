"""Detectron2's default trainer with the mapper, evaluator and optimizers of this project."""

import logging
import math
import os
import weakref

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import TrainerBase, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm

from ..checkpoint import ContrastMaskCheckpointer, Description
from ..data import (
    ContrastMaskDatasetMapper,
    SkipUnreadable,
    TrainingLoader,
    class_split_from_config,
    test_records,
)
from ..data.datasets import forget_annotations
from ..data.images import ImageReader
from ..data.resizing import TTAMapper
from ..evaluation import (
    ContrastMaskEvaluator,
    EvaluationModel,
    format_results_table,
    write_results_json,
)
from ..evaluation.report import write_report
from ..modeling import build_model, freeze_parts
from .best_checkpoint import BestCheckpointer, check_best_metric
from .detectron2_0_6 import DefaultTrainer
from .loss_checking import LossCheckingAMPTrainer, LossCheckingTrainer
from .precision import check_precision, train_in_bfloat16
from .resuming import ContinueMetrics, SeedSteps
from .solver import build_optimizer
from .trackers import build_trackers
from .validation_losses import ValidationLosses
from .weight_average import WeightAverage

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates what a config describes."""

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            ValueError: for a mixed precision that does not exist, or not on this device, for a
                metric that evaluation will not give, and for an unknown tracker.
            ImportError: if the package of a tracker is missing.
        """
        check_precision(cfg)
        check_best_metric(cfg, self.build_evaluator)
        self.trackers = build_trackers(cfg)
        amp = cfg.SOLVER.AMP
        self.class_split = class_split_from_config(cfg)
        # Not DefaultTrainer's, which has no choice of checkpointer, of training step, and of DDP on
        # CPUs.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        decay = cfg.SOLVER.EMA_DECAY
        self.weight_average = WeightAverage(model, decay) if decay > 0 else None
        if amp.ENABLED and amp.PRECISION == "bfloat16":
            train_in_bfloat16(model)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(
            model,
            broadcast_buffers=False,
            device_ids=[comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None,
        )
        scales_loss = amp.ENABLED and amp.PRECISION == "float16"
        step = LossCheckingAMPTrainer if scales_loss else LossCheckingTrainer
        num_parts = cfg.SOLVER.ACCUMULATION_PARTS
        self._trainer = step(model, data_loader, optimizer, num_parts=num_parts)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = ContrastMaskCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            exclude=cfg.MODEL.WEIGHTS_EXCLUDE,
            description=Description.of(cfg, self.class_split),
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._end = math.inf  # see `end_at`
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self):
        """
        Detectron2's hooks, those that make a resumed training go on exactly, and those that keys
        of ``TEST`` ask for.
        """
        cfg = self.cfg
        metrics = ContinueMetrics(os.path.join(cfg.OUTPUT_DIR, "metrics.json"))
        built = [SeedSteps(cfg.SEED), metrics, *self.trackers, *super().build_hooks()]
        saving = [x for x in built if isinstance(x, hooks.PeriodicCheckpointer)]
        place = next(i for i, x in enumerate(built) if isinstance(x, hooks.EvalHook))
        before, evaluation, after = built[: place - len(saving)], built[place], built[place + 1 :]
        if self.weight_average is not None:
            self.weight_average.checkpointer = self._checkpointer_for_use(self.weight_average.model)
            before.append(self.weight_average)
            evaluation = hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate_average)
        if cfg.TEST.VALIDATION_LOSS_IMAGES:
            model = self.evaluated_model
            before.append(ValidationLosses(cfg, getattr(model, "module", model)))
        if not cfg.TEST.BEST_METRIC:
            return [*before, *saving, evaluation, *after]
        best = BestCheckpointer(
            cfg.TEST.EVAL_PERIOD,
            self._checkpointer_for_use(self.evaluated_model),
            cfg.TEST.BEST_METRIC,
            patience=cfg.TEST.EARLY_STOP_PATIENCE,
        )
        # What a resumed training has to know about evaluations is in its checkpoint only if that is
        # written after the evaluation of the same iteration.
        return [*before, evaluation, best, *saving, *after]

    @property
    def evaluated_model(self):
        """nn.Module: with the weights that are evaluated in training."""
        return self.model if self.weight_average is None else self.weight_average.model

    def _evaluate_average(self):
        self._last_eval_results = self.test(self.cfg, self.evaluated_model)
        return self._last_eval_results

    def _checkpointer_for_use(self, model):
        """For checkpoints that no training is resumed from."""
        return ContrastMaskCheckpointer(
            model,
            self.cfg.OUTPUT_DIR,
            description=Description.of(self.cfg, self.class_split),
            marks_last=False,
        )

    def end_at(self, iteration):
        """
        End training early, as after its last iteration. To be called from hooks in all processes.

        Args:
            iteration (int): the first one that is not trained, after the current one.
        """
        self.max_iter = self._end = iteration
        for hook in self._hooks:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook.max_iter = iteration

    # Detectron2's loop cannot be left before its last iteration: what is left does nothing.

    def before_step(self):
        if self.iter < self._end:
            super().before_step()

    def run_step(self):
        if self.iter < self._end:
            super().run_step()

    def after_step(self):
        if self.iter < self._end:
            super().after_step()

    def build_writers(self):
        """Detectron2's writers and the experiment trackers."""
        return [*super().build_writers(), *self.trackers]

    def resume_or_load(self, resume=True):
        """
        As in Detectron2.

        Raises:
            ValueError: if the processes do not see the same checkpoint.
        """
        super().resume_or_load(resume)
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise ValueError(
                f"The processes would start from iterations {starts}: OUTPUT_DIR "
                f"{self.cfg.OUTPUT_DIR} has to be the same folder on all machines"
            )

    def state_dict(self):
        """As in Detectron2, and the names of the base classes."""
        return {**super().state_dict(), "base_classes": self._base_class_names()}

    def load_state_dict(self, state_dict):
        """
        Raises:
            ValueError: if the training began with other base classes.
        """
        begun_with, now = state_dict.get("base_classes"), self._base_class_names()
        if begun_with is not None and begun_with != now:
            raise ValueError(
                f"The training in OUTPUT_DIR {self.cfg.OUTPUT_DIR} began with masks of "
                f"{', '.join(begun_with) or 'no class'}, and DATASETS.BASE_CLASSES now means "
                f"{', '.join(now) or 'no class'}: choose another OUTPUT_DIR, or the classes it "
                "began with"
            )
        super().load_state_dict(state_dict)

    def _base_class_names(self):
        """list[str]: classes whose masks are learned from; none where no mask is."""
        return list(self.class_split.base_names) if self.cfg.MODEL.MASK_ON else []

    def after_train(self):
        if self.iter < self.max_iter:  # an error
            # In the last iteration Detectron2 would evaluate now, while other processes wait.
            self.max_iter = max(self.max_iter, self.iter + 2)
        self.iter = min(self.iter, self._end)
        super().after_train()

    @classmethod
    def build_model(cls, cfg):
        model = build_model(cfg)
        freeze_parts(model, cfg.MODEL.FROZEN_PARTS)
        logger.info(f"Model:\n{model}")
        return model

    @classmethod
    def build_train_loader(cls, cfg):
        loader = TrainingLoader(cfg, mapper=ContrastMaskDatasetMapper(cfg, is_train=True))
        forget_annotations()  # the loader has a compact copy
        return loader

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(
            dataset=test_records(cfg, dataset_name),
            mapper=SkipUnreadable(ContrastMaskDatasetMapper(cfg, is_train=False)),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return ContrastMaskEvaluator(
            dataset_name,
            class_split_from_config(cfg),
            output_dir=output_folder or os.path.join(cfg.OUTPUT_DIR, "inference"),
            backend=cfg.TEST.COCO_EVAL_BACKEND,
            eval_filled_boxes=cfg.TEST.EVAL_FILLED_BOXES,
        )

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """
        Evaluate on all of ``DATASETS.TEST``, log a table for each, and write ``results.json`` to
        the output folder (``results_<dataset>.json`` if there are several); with ``TEST.REPORT``
        also an HTML report.

        Args:
            cfg (CfgNode):
            model (nn.Module):
            evaluators (list[DatasetEvaluator]): one for each dataset, or None for the default.

        Returns:
            dict: what :meth:`DefaultTrainer.test` returns.
        """
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        elif not isinstance(evaluators, list):
            evaluators = [evaluators]
        model = EvaluationModel(model, gt_box_masks=cfg.MODEL.MASK_ON)
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            single = len(cfg.DATASETS.TEST) == 1
            for name, evaluator in zip(cfg.DATASETS.TEST, evaluators):
                of_dataset = results if single else results[name]
                logger.info(f"Results on {name}:\n{format_results_table(of_dataset)}")
                suffix = "" if single else f"_{name}"
                split = class_split_from_config(cfg)
                path = os.path.join(cfg.OUTPUT_DIR, f"results{suffix}.json")
                write_results_json(of_dataset, path, split)
                if not cfg.TEST.REPORT:
                    continue
                if not of_dataset:
                    logger.info(f"No report on {name}: it has no annotations to evaluate with")
                    continue
                path = os.path.join(cfg.OUTPUT_DIR, f"report{suffix}.html")
                write_report(
                    path,
                    dataset_name=name,
                    results=of_dataset,
                    data=evaluator.evaluation_data(),
                    class_split=split,
                    metrics_file=os.path.join(cfg.OUTPUT_DIR, "metrics.json"),
                    reader=ImageReader.from_config(cfg, format="RGB"),
                )
                logger.info(f"Report: {path}")
        return results

    @classmethod
    def test_with_tta(cls, cfg, model):
        """
        Evaluate on all of ``DATASETS.TEST`` with test-time augmentation (``TEST.AUG``).

        Args:
            cfg (CfgNode):
            model (nn.Module):

        Returns:
            dict: as from :meth:`DefaultTrainer.test`, with "_TTA" behind every key.
        """
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        model = GeneralizedRCNNWithTTA(cfg, model, tta_mapper=TTAMapper(cfg))
        results = super().test(cfg, EvaluationModel(model, gt_box_masks=False), evaluators)
        return {f"{key}_TTA": value for key, value in results.items()}
