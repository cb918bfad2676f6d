"""Training and evaluating every run of a study that is not done yet."""

import json
import logging
import math
import os
import subprocess
import sys
import time

from ..atomic_files import write_whole
from ..data import class_split_from_config
from ..engine import Trainer, load_config
from ..evaluation.box_masks import evaluate_box_masks
from ..evaluation.results import results_for_json
from ..inference import load_model

__all__ = ["RESULT_FILE", "run_study"]

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"
_START_FOLDER = "start"
_WEIGHTS_FILE = "model_final.pth"
_COST_FILE = "training_cost.json"
_LOG_LINES_SHOWN = 15
# Of ru_maxrss, whose unit depends on the system.
_BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024


def run_study(study, output, train_program, *, num_gpus=0):
    """
    Train and evaluate each variant with each seed, one after another. Runs with a result file are
    skipped, and an interrupted training goes on from its last checkpoint.

    Args:
        study (Study):
        output (str): folder with one folder `<variant>/seed<number>` for each run.
        train_program (str): path of train_net.py.
        num_gpus (int): passed on to it.

    Returns:
        list[dict]: the results, as in the result files.

    Raises:
        RuntimeError: if a training fails, with the end of its log.
        ValueError: if a result file stands for other settings.
    """
    train = _TrainProgram(train_program, study.base_config, num_gpus)
    common = dict(study.common)
    if study.start is not None:
        folder = os.path.join(output, _START_FOLDER)
        settings = {**common, **study.start, "SEED": study.seeds[0]}
        common["MODEL.WEIGHTS"] = train(settings, folder)
    results = []
    for seed in study.seeds:
        for variant in study.variants:
            folder = os.path.join(output, variant.name, f"seed{seed}")
            settings = {**common, **variant.settings, "SEED": seed}
            result = _read_result(folder, settings)
            if result is None:
                logger.info(f"Training {variant.name} with seed {seed}: {variant.title}")
                weights = train(settings, folder)
                result = {
                    "variant": variant.name,
                    "title": variant.title,
                    "seed": seed,
                    "settings": settings,
                    "training": _read_json(os.path.join(folder, _COST_FILE)),
                    **_evaluate(study, {**common, **variant.settings}, weights, folder),
                }
                _write_json(result, os.path.join(folder, RESULT_FILE))
            results.append({**result, "title": variant.title})
    return results


class _TrainProgram:
    """Trains in a process of its own, so that its time and memory can be measured."""

    def __init__(self, program, config_file, num_gpus):
        self._command = [sys.executable, program, "--resume", "--config-file", config_file]
        self._command += ["--num-gpus", str(num_gpus)]

    def __call__(self, settings, folder):
        """
        Args:
            settings (dict[str, object]):
            folder (str): for the output. A finished training there is not repeated.

        Returns:
            str: path of the final weights.
        """
        weights = os.path.join(folder, _WEIGHTS_FILE)
        if os.path.isfile(weights):
            return weights
        os.makedirs(folder, exist_ok=True)
        # The datasets are evaluated afterwards, with the classes of the study.
        settings = {**settings, "OUTPUT_DIR": folder, "DATASETS.TEST": ()}
        log_file = os.path.join(folder, "train.log")
        begin = time.perf_counter()
        with open(log_file, "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                self._command + as_options(settings), stdout=log, stderr=subprocess.STDOUT
            )
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                process.kill()
                process.wait()
                raise
            process.returncode = os.waitstatus_to_exitcode(status)
        self._add_cost(folder, time.perf_counter() - begin, usage.ru_maxrss * _BYTES_PER_MAXRSS)
        if process.returncode != 0 or not os.path.isfile(weights):
            with open(log_file, encoding="utf-8", errors="replace") as log:
                end = "".join(log.readlines()[-_LOG_LINES_SHOWN:])
            raise RuntimeError(
                f"Training ended with exit code {process.returncode}. The end of {log_file}:\n{end}"
            )
        return weights

    @staticmethod
    def _add_cost(folder, seconds, peak_memory):
        """Time adds up over interrupted attempts."""
        path = os.path.join(folder, _COST_FILE)
        before = _read_json(path) if os.path.isfile(path) else {"seconds": 0, "peak_memory_mib": 0}
        cost = {
            "seconds": round(before["seconds"] + seconds, 1),
            "peak_memory_mib": max(before["peak_memory_mib"], round(peak_memory / 2**20)),
        }
        _write_json(cost, path)


def as_options(settings):
    """
    Args:
        settings (dict[str, object]): config key -> value.

    Returns:
        list[str]: KEY VALUE pairs for a command line.
    """
    options = []
    for key, value in settings.items():
        options += [key, value if isinstance(value, str) else repr(value)]
    return options


def _evaluate(study, settings, weights, folder):
    """
    Returns:
        dict[str, dict]: "box", "mask" and so on as :func:`write_results_json` names them, and
        "gt_box_mask" as from :func:`evaluate_box_masks`.
    """
    keep = {k: v for k, v in settings.items() if not k.startswith("DATASETS.")}
    keep.update({k: v for k, v in study.common.items() if k.startswith("DATASETS.")})
    keep.update({"OUTPUT_DIR": folder, "MODEL.WEIGHTS": weights, "MODEL.WEIGHTS_EXCLUDE": []})
    cfg = load_config(study.base_config, as_options(keep))
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(
            f"Study {study.path}: DATASETS.TEST has to name one dataset, it is {cfg.DATASETS.TEST}"
        )
    dataset = cfg.DATASETS.TEST[0]
    class_split = class_split_from_config(cfg, dataset)
    model = load_model(cfg)
    results = results_for_json(Trainer.test(cfg, model))
    box_masks = evaluate_box_masks(
        cfg, model, dataset, class_split, backend=cfg.TEST.COCO_EVAL_BACKEND
    )
    results["gt_box_mask"] = {
        group: {k: None if math.isnan(v) else v for k, v in numbers.items()}
        for group, numbers in box_masks.items()
    }
    return results


def _read_result(folder, settings):
    path = os.path.join(folder, RESULT_FILE)
    if not os.path.isfile(path):
        return None
    result = _read_json(path)
    if result["settings"] != json.loads(json.dumps(settings)):
        raise ValueError(
            f"{path} is the result of other settings: remove {folder}, or choose another output "
            "folder"
        )
    return result


def _read_json(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def _write_json(content, path):
    with write_whole(path, "w", encoding="utf-8") as f:
        json.dump(content, f, indent=2, allow_nan=False)
        f.write("\n")
