"""
Masks of finished images in files of JSON lines, one for each process, from which an interrupted run
goes on.
"""

import glob
import json
import os
from typing import Dict, Iterator, List, Sequence, TextIO, Tuple

from ..predictor import BoxMask, Predictor

__all__ = [
    "append_masks",
    "open_partial_results",
    "partial_paths",
    "read_partial_results",
    "run_identity",
]


def run_identity(predictor: Predictor, json_file: str, replace: bool) -> Dict[str, object]:
    """What partial results depend on: annotation file, model, config, choice of annotations."""
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = cfg.MODEL.WEIGHTS = ""
    return {
        "annotation file": _file_identity(json_file),
        "model": _file_identity(predictor.cfg.MODEL.WEIGHTS),
        "config": cfg.MODEL.dump() + cfg.INPUT.dump(),
        "choice of annotations": "all" if replace else "box-only",
    }


def _file_identity(path) -> List[object]:
    if not os.path.isfile(path):  # one that only Detectron2's path manager knows
        return [path]
    status = os.stat(path)
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def append_masks(file: TextIO, indices: Sequence[int], masks: Sequence[BoxMask]) -> None:
    """Add the masks of some annotations; they are on the disk when this returns."""
    file.write("".join(json.dumps([i, *mask]) + "\n" for i, mask in zip(indices, masks)))
    file.flush()
    os.fsync(file.fileno())


def partial_paths(output: str) -> List[str]:
    """The files of partial results beside an output file, of any number of processes."""
    return sorted(glob.glob(f"{glob.escape(output)}.partial*.jsonl"))


def read_partial_results(output: str, identity: dict) -> Iterator[Tuple[int, BoxMask]]:
    """
    Args:
        output: file whose partial results are read. A line that was cut off ends its file.
        identity: from :func:`run_identity`; the first line of each file.

    Yields:
        The index of an annotation in its file, and its mask. One that is repeated is replaced.

    Raises:
        ValueError: if a file belongs to something else.
    """
    for path in partial_paths(output):
        lines = _whole_lines(path, identity)
        next(lines, None)
        yield from ((index, BoxMask(mask, score)) for (index, mask, score), _ in lines)


def open_partial_results(output: str, identity: dict, rank: int = 0) -> TextIO:
    """
    Open the partial results of a process to add more. A line that was cut off is removed.

    Args:
        output, identity: as in :func:`read_partial_results`.
        rank: number of the process.

    Raises:
        ValueError: if the file belongs to something else; it is not changed.
    """
    path, end = f"{output}.partial{f'-{rank}' if rank else ''}.jsonl", 0
    if os.path.exists(path):
        for _, end in _whole_lines(path, identity):  # noqa: B007
            pass
    file = open(path, "a", encoding="utf-8")
    file.truncate(end)
    if not end:
        file.write(json.dumps(identity) + "\n")
        file.flush()
    return file


def _whole_lines(path: str, identity: dict) -> Iterator[Tuple[object, int]]:
    """The content of each line, and where it ends in the file, up to a line that was cut off."""
    end, first = 0, []
    with open(path, "rb") as f:
        for line in f:
            try:
                content = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):  # cut off, like one that is no JSON
                break
            first = first or [content]
            if first != [identity]:
                break
            end += len(line)
            yield content, end
    if first != [identity] and os.path.getsize(path):
        raise ValueError(f"{path} is in the way: {_difference(first, identity)}")


def _difference(first: list, identity: dict) -> str:
    if not first or not isinstance(first[0], dict) or not identity.keys() <= first[0].keys():
        return "it does not hold partial results. Move it, or choose another output file"
    other = " and ".join(k for k, v in identity.items() if first[0][k] != v)
    return (
        f"it belongs to an interrupted run with another {other}. Remove it to begin again, or "
        "choose another output file"
    )
