"""Writing settings and their reasons as a commented config."""

import os
import textwrap
from pathlib import Path
from typing import List, Sequence

import yaml

from .atomic_files import write_whole
from .config_files import config_path
from .planning import Choice, Plan

__all__ = ["write_config"]

_LINE_LENGTH = 100


def write_config(path: str, plan: Plan, header: Sequence[str] = ()) -> None:
    """
    Args:
        path: YAML file to write; one that exists is replaced. Its folder is made.
        plan: settings; above each stands its reason.
        header: paragraphs to begin with.
    """
    lines = [x for text in header for x in _comment(text, 0)]
    lines.append(f"_BASE_: {_value(_base_path(path, plan.base))}")
    lines += _section(plan.choices, [x.key.split(".") for x in plan.choices], 0)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with write_whole(path, "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")


def _base_path(path: str, base: str) -> str:
    """Relative in the project's folder of configs, else absolute."""
    target, folder = Path(config_path(base)).resolve(), Path(path).resolve().parent
    root = target.parents[base.count("/")]
    if folder == root or root in folder.parents:
        return Path(os.path.relpath(target, folder)).as_posix()
    return str(target)


def _section(choices: Sequence[Choice], keys: Sequence[List[str]], depth: int) -> List[str]:
    """Lines of the choices that share the first `depth` parts of their keys."""
    lines, indent = [], "  " * depth
    for name in dict.fromkeys(key[depth] for key in keys):
        group = [(c, k) for c, k in zip(choices, keys) if k[depth] == name]
        choice, key = group[0]
        if len(key) == depth + 1:
            lines += [*_comment(choice.reason, depth), f"{indent}{name}: {_value(choice.value)}"]
        else:
            lines += [f"{indent}{name}:", *_section(*zip(*group), depth + 1)]
    return lines


def _comment(text: str, depth: int) -> List[str]:
    # Class names may hold anything; YAML takes some of it as the end of a line, or refuses it.
    text = "".join(x if x.isprintable() else "?" for x in " ".join(text.split()))
    start = "  " * depth + "# "
    width = _LINE_LENGTH - len(start)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return [start + x for x in lines]


def _value(value: object) -> str:
    style = {"default_flow_style": True, "width": float("inf")}
    if isinstance(value, str):
        style["default_style"] = '"'
    return yaml.safe_dump(value, **style).removesuffix("...\n").rstrip("\n")
