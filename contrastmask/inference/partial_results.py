"""Masks of finished images in a file of JSON lines, from which an interrupted run goes on."""

import json
import os
from typing import Dict, List, Sequence, TextIO, Tuple

from ..predictor import BoxMask, Predictor

__all__ = ["append_masks", "open_partial_results", "run_identity"]


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


def open_partial_results(path: str, identity: dict) -> Tuple[Dict[int, BoxMask], TextIO]:
    """
    Read the partial results of an interrupted run, if there are any. A line that was cut off is
    removed.

    Args:
        path: file, which may exist.
        identity: from :func:`run_identity`; the first line of the file.

    Returns:
        Index of an annotation in its file -> its mask, and the file, open to add more.

    Raises:
        ValueError: if the file belongs to something else; it is not changed.
    """
    lines, end = [], 0
    if os.path.exists(path):
        with open(path, "rb") as f:
            for line in f:
                try:
                    content = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):  # cut off, like one that is no JSON
                    break
                lines.append(content)
                end += len(line)
        if lines[:1] != [identity] and os.path.getsize(path):
            raise ValueError(f"{path} is in the way: {_difference(lines[:1], identity)}")
    file = open(path, "a", encoding="utf-8")
    file.truncate(end)
    if not lines:
        file.write(json.dumps(identity) + "\n")
        file.flush()
    return {index: BoxMask(mask, score) for index, mask, score in lines[1:]}, file


def _difference(first: list, identity: dict) -> str:
    if not first or not isinstance(first[0], dict) or not identity.keys() <= first[0].keys():
        return "it does not hold partial results. Move it, or choose another output file"
    other = " and ".join(k for k, v in identity.items() if first[0][k] != v)
    return (
        f"it belongs to an interrupted run with another {other}. Remove it to begin again, or "
        "choose another output file"
    )
