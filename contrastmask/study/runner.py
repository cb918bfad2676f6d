"""Training and evaluating every run of a study that is not done yet."""

import glob
import json
import logging
import os
import subprocess
import sys
import time

from ..atomic_files import write_whole
from ..engine import Trainer, load_config, read_config_file
from ..evaluation.results import results_for_json
from ..predictor import load_model

__all__ = ["RESULT_FILE", "run_study"]

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"
_START_FOLDER = "start"
_WEIGHTS_FILE = "model_final.pth"
_SETTINGS_FILE = "study_settings.json"
# What would be used again: a result, finished weights, and those that a training goes on from.
_REUSED = (RESULT_FILE, "last_checkpoint", "*.pth")
_COST_FILE = "training_cost.json"
_LOG_LINES_SHOWN = 15
# Of ru_maxrss, whose unit depends on the system.
_BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024


def run_study(study, output, train_program, *, num_gpus=0):
    """
    Train and evaluate each variant with each seed, one after another. Runs with a result file are
    skipped, and an interrupted training goes on from its last checkpoint. Each folder keeps the
    settings it stands for, and is used for no others.

    Args:
        study (Study):
        output (str): folder with one folder `<variant>/seed<number>` for each run.
        train_program (str): path of train_net.py.
        num_gpus (int): passed on to it.

    Returns:
        list[dict]: the results, as in the result files.

    Raises:
        RuntimeError: if a training fails, with the end of its log.
        ValueError: if a folder has weights or a result of other settings, or the base config cannot
            be read.
    """
    train = _TrainProgram(train_program, study.base_config, num_gpus)
    identity = {"base_config": read_config_file(study.base_config)}
    common = dict(study.common)
    if study.start is not None:
        folder = os.path.join(output, _START_FOLDER)
        settings = {**common, **study.start, "SEED": study.seeds[0]}
        _claim(folder, {**identity, "settings": settings})
        identity["start"] = settings
        common["MODEL.WEIGHTS"] = train(settings, folder)
    results = []
    for seed in study.seeds:
        for variant in study.variants:
            folder = os.path.join(output, variant.name, f"seed{seed}")
            settings = {**common, **variant.settings, "SEED": seed}
            _claim(folder, {**identity, "settings": settings})
            result = _read_json_if_there(os.path.join(folder, RESULT_FILE))
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
        before = _read_json_if_there(path) or {"seconds": 0, "peak_memory_mib": 0}
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
        dict[str, dict]: "box", "mask" and so on as :func:`write_results_json` names them.
    """
    keep = {k: v for k, v in settings.items() if not k.startswith("DATASETS.")}
    keep.update({k: v for k, v in study.common.items() if k.startswith("DATASETS.")})
    keep.update({"OUTPUT_DIR": folder, "MODEL.WEIGHTS": weights})
    cfg = load_config(study.base_config, as_options(keep))
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(
            f"Study {study.path}: DATASETS.TEST has to name one dataset, it is {cfg.DATASETS.TEST}"
        )
    return results_for_json(Trainer.test(cfg, load_model(cfg)))


def _claim(folder, identity):
    """
    Make a folder that of certain settings, which it keeps in a file.

    Args:
        folder (str): created if it is missing.
        identity (dict[str, dict]): all that decides about its results.

    Raises:
        ValueError: if there are weights or a result of other, or of unknown, settings in it.
    """
    path = os.path.join(folder, _SETTINGS_FILE)
    identity = json.loads(json.dumps(identity, default=str))
    known = _read_json_if_there(path)
    if known == identity:
        return
    if any(glob.glob(os.path.join(glob.escape(folder), pattern)) for pattern in _REUSED):
        reason = f"there is no {path}" if known is None else _differences(known, identity)
        raise ValueError(
            f"{folder} was made with other settings ({reason}): remove {folder}, or choose "
            "another output folder"
        )
    os.makedirs(folder, exist_ok=True)
    cost_file = os.path.join(folder, _COST_FILE)
    if os.path.isfile(cost_file):  # of attempts with other settings
        os.remove(cost_file)
    _write_json(identity, path)


def _differences(first, second):
    """Names of the keys that differ, as "settings: SOLVER.BASE_LR, start: SEED"."""
    names = []
    for part in sorted({*first, *second}):
        one, other = first.get(part, {}), second.get(part, {})
        keys = sorted({*one, *other})
        names += [f"{part}: {key}" for key in keys if one.get(key, ...) != other.get(key, ...)]
    return ", ".join(names)


def _read_json_if_there(path):
    return _read_json(path) if os.path.isfile(path) else None


def _read_json(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def _write_json(content, path):
    with write_whole(path, "w", encoding="utf-8") as f:
        json.dump(content, f, indent=2, allow_nan=False)
        f.write("\n")
