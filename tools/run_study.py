#!/usr/bin/env python
"""
Train variants of a config with several seeds and compare them:

    python tools/run_study.py --study studies/shapes.yaml --output output/study

A study is a YAML file:

    base_config: ../configs/quickstart.yaml  # relative to the file
    seeds: [1, 2, 3]                         # each variant is trained with each
    common: {SOLVER.MAX_ITER: 300}           # optional: settings of all runs
    start: {MODEL.MASK_ON: False}            # optional: a training with these and the common ones,
                                             # and the first seed; all runs start with its weights
    baseline: mask_rcnn                      # optional: the variant to compare with, seed by seed
    variants:
      mask_rcnn:                             # name of its folder
        title: Mask R-CNN                    # optional, for tables
        settings: {MODEL.ROI_CONTRASTIVE_HEAD.ENABLED: False}

A run is a training with train_net.py in <output>/<variant>/seed<number>, and an evaluation on
DATASETS.TEST with the base and novel classes of the base config and the common settings, also where
a variant trains with others. The same command continues a study: finished runs are skipped, an
interrupted one goes on where it was. A folder that was made with other settings is an error. The
output folder gets study.md (tables), study.json and study.png.
"""

import argparse
import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

import yaml
from detectron2.utils.logger import setup_logger
from study_summary import format_tables, plot, summarize

from contrastmask import get_config
from contrastmask.atomic_files import write_whole
from contrastmask.config import naming_config
from contrastmask.data import check_all, class_split_from_config
from contrastmask.engine import load_config, read_config_file
from contrastmask.engine.programs import UserError, parse_args, program

logger = logging.getLogger("contrastmask.run_study")

_TRAIN_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "train_net.py")
_BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024

_ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")


@dataclass(frozen=True)
class Study:
    """What a study file says; settings are config keys with values."""

    path: str
    base_config: str
    seeds: Sequence[int]
    common: Dict[str, object]
    start: Optional[Dict[str, object]]
    baseline: Optional[str]
    variants: Dict[str, dict]  # name -> "title" and "settings"


_TYPES = {"base_config": str, "seeds": list, "variants": dict}
_OPTIONAL_TYPES = {"common": dict, "start": dict, "baseline": str}


def load_study(
    path: str,
    *,
    variants: Optional[Sequence[str]] = None,
    seeds: Optional[Sequence[int]] = None,
    settings: Optional[Dict[str, object]] = None,
) -> Study:
    """
    Args:
        path: the file.
        variants: only these, by name.
        seeds: instead of those of the file.
        settings: more common settings.

    Raises:
        ValueError: naming the file and the key, if it is not a study, or has settings that no
            config can have.
    """
    with naming_config(f"study {path}"):
        with open(path, encoding="utf-8") as f:
            content = yaml.safe_load(f)
        _check_types("", content, {**_TYPES, **_OPTIONAL_TYPES}, needed=_TYPES)
        seeds = seeds or content["seeds"]
        if not seeds or seeds != [x for x in dict.fromkeys(seeds) if type(x) is int and x >= 0]:
            raise ValueError(f"seeds: give different whole numbers from 0, not {seeds}")
        known = {}
        for name, entry in content["variants"].items():
            if not re.fullmatch(r"[\w-]+", str(name)):
                raise ValueError(f"variants: {name!r} cannot name a folder: use letters and digits")
            _check_types(f"variants.{name}.", entry, {"title": str, "settings": dict})
            known[str(name)] = {"title": str(name), "settings": {}, **entry}
        if not known:
            raise ValueError("variants: name at least one")
        baseline = content.get("baseline")
        for name in (*(variants or ()), *([baseline] if baseline else ())):
            if name not in known:
                raise ValueError(f"variants: there is no {name!r}, only {', '.join(known)}")
        study = Study(
            path,
            os.path.normpath(os.path.join(os.path.dirname(path), content["base_config"])),
            seeds,
            {**content.get("common", {}), **(settings or {})},
            content.get("start"),
            baseline,
            {name: x for name, x in known.items() if not variants or name in variants},
        )
        trained = {"start": study.start or {}, **{k: x["settings"] for k, x in known.items()}}
        for name, own in trained.items():
            with naming_config(name):  # rather now than after hours
                get_config(study.base_config, as_options({**study.common, **own}))
    return study


def as_options(settings: Dict[str, object]) -> List[str]:
    """KEY VALUE pairs for a command line."""
    return [x for k, v in settings.items() for x in (k, v if isinstance(v, str) else repr(v))]


def _check_types(where, content, types, needed=()):
    if not isinstance(content, dict):
        raise ValueError(f"{where or 'it'} has to hold keys with values, not {content!r}")
    for key in {**dict.fromkeys(needed), **content}:
        if key not in types:
            raise ValueError(f"{where}{key} is not a key of a study; known are {', '.join(types)}")
        if not isinstance(content.get(key), types[key]):
            kind = types[key].__name__
            raise ValueError(f"{where}{key} has to be a {kind}, not {content.get(key)!r}")


def run_study(study: Study, output: str, *, num_gpus: int = 0) -> List[dict]:
    """
    Train and evaluate what is not done yet, one run after another.

    Returns:
        For each run "variant", "title", "seed", "training" (its cost), and what
        :func:`contrastmask.evaluation.write_results_json` writes.

    Raises:
        UserError: if a training or an evaluation fails, with the end of its log.
        ValueError: if a folder has weights of other settings, and for data that cannot be trained
            or evaluated with.
    """
    made_with, first_weights, results = {"base_config": read_config_file(study.base_config)}, {}, []
    test_options = functools.lru_cache(None)(lambda: _test_options(study))  # reads the data

    def run(folder, settings, seed):
        settings = {**study.common, **settings, "SEED": seed}
        run = Run(folder, {**made_with, "settings": settings}, num_gpus)
        if run.result is None:
            test = test_options()
            logger.info(f"Training in {folder}")
            run.train(study.base_config, {**settings, **first_weights})
            run.evaluate(test)
        return run

    if study.start is not None:
        start = run(os.path.join(output, "start"), study.start, study.seeds[0])
        made_with["start"] = start.made_with["settings"]
        first_weights = {"MODEL.WEIGHTS": start.weights}
    for seed in study.seeds:
        for name, variant in study.variants.items():
            done = run(os.path.join(output, name, f"seed{seed}"), variant["settings"], seed)
            result = {"training": done.cost, **done.result}
            results.append({"variant": name, "title": variant["title"], "seed": seed, **result})
    return results


def _test_options(study):
    """KEY VALUE pairs that all runs are evaluated with."""
    cfg = load_config(study.base_config, as_options(study.common))
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(f"study {study.path}: DATASETS.TEST has to name one dataset")
    check_all(cfg)
    split = class_split_from_config(cfg)
    settings = {f"DATASETS.{key}": value for key, value in cfg.DATASETS.items()}
    settings["DATASETS.BASE_CLASSES"] = list(split.base_names)
    settings["DATASETS.NOVEL_CLASSES"] = list(split.novel_names)
    return as_options(settings)


class Run:
    """A folder with one training and its evaluation, which keeps the settings it was made with.

    Attributes:
        made_with: all that decides about the result, except where the weights of the start are.
        weights: path of the final weights.
        cost: "seconds" and "peak_memory_mib" of the training, and of interrupted attempts at it;
            memory of tensors on the GPU, or of the process where there is no GPU.
        result: of the evaluation; None before it.
    """

    def __init__(self, folder: str, made_with: Dict[str, dict], num_gpus: int):
        """
        Raises:
            ValueError: if there are weights or a result of other, or of unknown, settings.
        """
        self._folder, self._num_gpus = folder, num_gpus
        self.weights = self._path("model_final.pth")
        self.made_with = json.loads(json.dumps(made_with, default=str))
        self.cost, self.result = {"seconds": 0, "peak_memory_mib": 0}, None
        os.makedirs(folder, exist_ok=True)
        state = {"made_with": {}, "result": None}
        if os.path.isfile(self._path("study_run.json")):
            state = _read_json(self._path("study_run.json"))
        if state["made_with"] == self.made_with:
            self.cost, self.result = state["cost"], state["result"]
        elif state["result"] or any(x.endswith(".pth") for x in os.listdir(folder)):
            differing = _differing(state["made_with"], self.made_with)
            raise ValueError(
                f"{folder} was made with other settings than these ({differing}): remove it, or "
                "choose another output folder"
            )

    def train(self, config_file: str, settings: Dict[str, object]) -> None:
        """A finished training is not repeated, and an interrupted one goes on where it was."""
        if not os.path.isfile(self.weights):
            # The evaluation follows, with the classes of the study.
            options = as_options({**settings, "DATASETS.TEST": ()})
            self._call("--resume", "--config-file", config_file, *options)

    def evaluate(self, options: Sequence[str]) -> None:
        self._call("--eval-only", "MODEL.WEIGHTS", self.weights, *options)
        self.result = _read_json(self._path("results.json"))
        self._save()

    def _call(self, *arguments):
        """train_net.py in a process of its own, so that time and memory can be measured."""
        command = [sys.executable, _TRAIN_PROGRAM, "--num-gpus", str(self._num_gpus), *arguments]
        command += ["OUTPUT_DIR", self._folder]
        self._save()
        begin = time.perf_counter()
        with open(self._path("study.log"), "a+", errors="replace") as log:
            start = log.seek(0, os.SEEK_END)
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                process.kill()
                _, status, usage = os.wait4(process.pid, 0)
                raise
            finally:
                process.returncode = os.waitstatus_to_exitcode(status)
                log.seek(start)
                printed = log.read()
                if "--resume" in arguments:
                    self._add_cost(time.perf_counter() - begin, usage, printed)
        if process.returncode != 0:
            last_line = printed.strip().rpartition("\n")[2]
            raise UserError(f"train_net.py failed, see {log.name}, which ends with: {last_line}")

    def _add_cost(self, seconds, usage, printed):
        memory = [usage.ru_maxrss * _BYTES_PER_MAXRSS / 2**20]
        memory = [float(x) for x in re.findall(r"max_mem: (\d+)M", printed)] or memory
        self.cost = {
            "seconds": round(self.cost["seconds"] + seconds, 1),
            "peak_memory_mib": max(self.cost["peak_memory_mib"], round(max(memory))),
        }
        self._save()

    def _path(self, name):
        return os.path.join(self._folder, name)

    def _save(self):
        state = {"made_with": self.made_with, "cost": self.cost, "result": self.result}
        _write_json(state, self._path("study_run.json"))


def _differing(first, second):
    """Keys that differ, as "settings: SOLVER.BASE_LR, start: SEED"."""
    first, second = (
        {f"{part}: {key}": value for part, content in x.items() for key, value in content.items()}
        for x in (first, second)
    )
    keys = sorted({*first, *second})
    return ", ".join(key for key in keys if first.get(key, ...) != second.get(key, ...))


def _read_json(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def _write_json(content, path):
    with write_whole(path, "w", encoding="utf-8") as f:
        json.dump(content, f, indent=2, allow_nan=False)
        f.write("\n")


@program
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", required=True, help="YAML file")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of those of the study")
    parser.add_argument("--num-gpus", type=int, default=0, help="of a training (default: 0)")
    parser.add_argument("--output", required=True, help="folder for runs, tables and plot")
    args = parse_args(parser, argv)
    if len(args.opts) % 2:
        parser.error(f"settings have to be KEY VALUE pairs, not {' '.join(args.opts)}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the training
    setup_logger(name="contrastmask")
    settings = dict(zip(args.opts[::2], args.opts[1::2]))
    study = load_study(args.study, variants=args.variants, seeds=args.seeds, settings=settings)
    results = run_study(study, args.output, num_gpus=args.num_gpus)
    summary = summarize(results, study.baseline)
    tables = format_tables(summary, study.baseline)
    with open(os.path.join(args.output, "study.md"), "w", encoding="utf-8") as f:
        f.write(tables)
    _write_json({"summary": summary, "results": results}, os.path.join(args.output, "study.json"))
    plot(summary, os.path.join(args.output, "study.png"))
    print(tables)


if __name__ == "__main__":
    sys.exit(main())
