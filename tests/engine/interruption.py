"""
Train a small detector undisturbed, and again with kills. A program of its own, because it forks
its trainings to save the time of imports, which a process that has computed something cannot.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from small_model import CONFIG_FILE, options  # noqa: E402

import train_net  # noqa: E402


class Training:
    """``train_net.py --resume`` in a fork of this process; what it prints goes to a file."""

    def __init__(self, data, output, opts):
        self.output = output
        self.log = output.with_suffix(".log")
        self.log_begin = self.log.stat().st_size if self.log.exists() else 0
        schedule = ["SEED", "5", "SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(48,64)"]
        schedule += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "TEST.REPORT", "False"]
        opts = [*options(data, "interrupted"), *schedule, *opts, "OUTPUT_DIR", str(output)]
        args = ["--config-file", CONFIG_FILE, "--resume", *opts]
        self.began = time.time()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(train_net.default_argument_parser().parse_args(args))

    def _run(self, args):
        code = 1
        try:
            with open(self.log, "ab") as f:
                os.dup2(f.fileno(), 1)
                os.dup2(f.fileno(), 2)
            train_net.main(args)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def is_running(self):
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)

    def finish(self):
        if os.waitpid(self.pid, 0)[1]:
            raise SystemExit(f"training failed:\n{self.printed()[-5000:]}")

    def printed(self):
        return self.log.read_bytes()[self.log_begin :].decode(errors="replace")

    def kill(self, kind, delay):
        """
        Args:
            kind (str): "writing": as soon as a checkpoint is being written; "training": `delay`
                after training begins and there is a checkpoint, of this or an earlier attempt;
                "starting": `delay` after the start.
            delay (float): seconds.

        Returns:
            dict: what it met: kind, the files that were being written, and the last complete
            checkpoint. None if training has come to its end before.
        """
        last = self.output / "last_checkpoint"
        while self.is_running():
            if kind == "writing" and self.unfinished():
                break
            if kind == "training" and last.exists() and "Starting training" in self.printed():
                time.sleep(delay)
                break
            if kind == "starting" and time.time() - self.began > delay:
                break
            time.sleep(0.001 if kind == "writing" else 0.02)
        else:
            return None
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return {
            "kind": kind,
            "writing": self.unfinished(),
            "last": last.read_text() if last.exists() else None,
        }

    def unfinished(self):
        """Files that this training is writing, not those that one before it left."""
        try:
            found = self.output.glob("*.unfinished")
            return [path.name for path in found if path.stat().st_mtime >= self.began]
        except FileNotFoundError:  # finished meanwhile
            return []


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("whole", type=Path, help="output without kills")
    parser.add_argument("killed", type=Path, help="output of the same with kills")
    parser.add_argument("--kills", required=True, help="kinds of kills with commas between them")
    parser.add_argument("--longest-delay", type=float, default=6, help="in training steps")
    args, opts = parser.parse_known_args()
    torch.set_num_threads(1)
    for output in (args.whole, args.killed):
        output.mkdir()
    Training(args.data, args.whole, opts).finish()
    lines = map(json.loads, (args.whole / "metrics.json").read_text().splitlines())
    longest = args.longest_delay * [x["time"] for x in lines if "time" in x][-1]
    rng = random.Random(0)
    met = []
    for kind in args.kills.split(","):
        training = Training(args.data, args.killed, opts)
        met.append(training.kill(kind, rng.uniform(0, longest)))
        if met[-1] is None:
            break
    Training(args.data, args.killed, opts).finish()
    print(json.dumps(met))


if __name__ == "__main__":
    main()
