"""Trainings of a small detector that are killed and resumed. Run as a program by the tests."""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from small_model import CONFIG_FILE, options  # noqa: E402


def arguments(data, output, *opts):
    """Command line arguments of train_net.py."""
    schedule = ["SEED", "5", "SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(48,64)"]
    schedule += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "TEST.REPORT", "False"]
    opts = [*options(Path(data), "interrupted"), *schedule, *opts, "OUTPUT_DIR", str(output)]
    return ["--config-file", CONFIG_FILE, "--resume", *opts]


class ForkedTraining:
    """A training in a fork of this process, which has to have imported the project already."""

    def __init__(self, arguments, log):
        self.pid = os.fork()
        if self.pid == 0:
            _train_and_exit(arguments, log)

    def is_running(self):
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class StartedTraining:
    """A training started as ``python train_net.py``."""

    def __init__(self, arguments, log):
        command = [sys.executable, str(ROOT / "train_net.py"), *arguments]
        with open(log, "ab") as f:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=f, stderr=f)

    def is_running(self):
        return self._process.poll() is None

    def kill(self):
        self._process.kill()
        self._process.wait()

    def wait(self):
        return self._process.wait()


def _train_and_exit(arguments, log):
    code = 1
    try:
        with open(log, "ab") as f:
            os.dup2(f.fileno(), 1)
            os.dup2(f.fileno(), 2)
        import train_net

        train_net.main(train_net.default_argument_parser().parse_args(arguments))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def train_with_kills(start, output, log, kills):
    """
    Args:
        start (callable): begins or resumes the training.
        output (Path): its folder.
        log (Path): what it prints.
        kills (list[tuple[str, float]]): one for each time it is killed. ("writing", _): as soon as
            a checkpoint is being written; ("training", s): s seconds after the model is ready;
            ("starting", s): s seconds after the start.

    Returns:
        list[dict]: for each kill what it met: seconds since the start, the file that was being
        written, and the last complete checkpoint.
    """
    met = []
    for kind, delay in kills:
        size_before = log.stat().st_size if log.exists() else 0
        for leftover in output.glob("*.unfinished"):
            os.utime(leftover, (0, 0))  # to tell it from one of this attempt
        training, began = start(), time.perf_counter()
        while training.is_running():
            unfinished = _being_written(output)
            if kind == "writing" and unfinished:
                break
            if kind == "training" and "Starting training" in _read(log, size_before):
                time.sleep(delay)
                break
            if kind == "starting" and time.perf_counter() - began > delay:
                break
            time.sleep(0.001 if kind == "writing" else 0.02)
        else:
            break  # finished before the kill
        training.kill()
        last = output / "last_checkpoint"
        met.append(
            {
                "kind": kind,
                "seconds": round(time.perf_counter() - began, 2),
                "writing": _being_written(output),
                "last": last.read_text() if last.exists() else None,
            }
        )
    code = start().wait()
    if code:
        raise SystemExit(f"training failed:\n{_read(log, 0)[-5000:]}")
    return met


def _being_written(output):
    try:
        return [p.name for p in output.glob("*.unfinished") if p.stat().st_mtime > 0]
    except FileNotFoundError:  # finished meanwhile
        return []


def _read(log, begin):
    if not log.exists():
        return ""
    with open(log, errors="replace") as f:
        f.seek(begin)
        return f.read()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("reference", type=Path, help="output of the same without kills")
    parser.add_argument("output", type=Path)
    parser.add_argument("--kills", default="", help="kinds of kills with commas between them")
    parser.add_argument("--longest-delay", type=float, default=6, help="in training steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fork", action="store_true")
    args, opts = parser.parse_known_args()
    training = StartedTraining
    if args.fork:
        import torch

        import train_net  # noqa: F401

        torch.set_num_threads(1)
        training = ForkedTraining

    def train(output, kills):
        output.mkdir(parents=True, exist_ok=True)
        log = output.with_suffix(".log")
        start = partial(training, arguments(args.data, output, *opts), log)
        return train_with_kills(start, output, log, kills)

    train(args.reference, [])
    last_line = (args.reference / "metrics.json").read_text().splitlines()[-2]
    longest = args.longest_delay * json.loads(last_line)["time"]
    rng = random.Random(args.seed)
    kinds = args.kills.split(",") if args.kills else []
    met = train(args.output, [(kind, rng.uniform(0, longest)) for kind in kinds])
    print(json.dumps(met))


if __name__ == "__main__":
    main()
