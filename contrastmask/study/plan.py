"""What a study trains: a YAML file with variants over a common base."""

import os
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import yaml

__all__ = ["Study", "Variant", "load_study"]

_KEYS = ("base_config", "seeds", "common", "start", "variants")


@dataclass(frozen=True)
class Variant:
    """One configuration that is trained with every seed.

    Attributes:
        name: name of its folder.
        title: what it is, for tables.
        settings: config key -> value, over the base config and the study's common settings.
    """

    name: str
    title: str
    settings: Dict[str, object]


@dataclass(frozen=True)
class Study:
    """
    Attributes:
        path: the file it comes from.
        base_config: path of the config file that all runs share.
        seeds: one run of each variant for each.
        common: settings of all runs. Every run is evaluated with DATASETS.TEST and the base and
            novel classes of `base_config` and `common`, also a variant that trains with others.
        start: settings of a training whose final weights all variants begin with, or None. It is
            done once, with the first seed.
        variants: in the order of the tables.
    """

    path: str
    base_config: str
    seeds: Tuple[int, ...]
    common: Dict[str, object]
    start: Optional[Dict[str, object]]
    variants: Tuple[Variant, ...]


def load_study(path: str, *, variants=None, seeds=None, settings=None) -> Study:
    """
    Args:
        path: a YAML file::

            base_config: ../configs/quickstart.yaml  # relative to the file
            seeds: [1, 2, 3]
            common: {SOLVER.MAX_ITER: 300}      # optional
            start: {MODEL.MASK_ON: False}       # optional
            variants:
              baseline:
                title: Mask R-CNN
                settings: {MODEL.ROI_CONTRASTIVE_HEAD.ENABLED: False}

        variants (sequence[str]): only these, by name.
        seeds (sequence[int]): instead of those of the file.
        settings (dict): more common settings.

    Returns:
        Study:

    Raises:
        ValueError: naming the file and the key, if it is not such a file.
    """

    def problem(text):
        return ValueError(f"Study {path}: {text}")

    with open(path, encoding="utf-8") as f:
        try:
            content = yaml.safe_load(f)
        except yaml.YAMLError as error:
            raise problem(f"not YAML: {error}") from None
    if not isinstance(content, dict) or not {"base_config", "seeds", "variants"} <= set(content):
        raise problem("it needs the keys base_config, seeds and variants")
    unknown = sorted(map(str, set(content) - set(_KEYS)))
    if unknown:
        raise problem(f"unknown keys {unknown}, known are {list(_KEYS)}")

    seeds = content["seeds"] if seeds is None else seeds
    if not isinstance(seeds, (list, tuple)) or not seeds or not all(map(_is_seed, seeds)):
        raise problem(f"seeds: a list of whole numbers from 0, not {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise problem(f"seeds: {list(seeds)} has a number twice")
    common = _settings(content.get("common") or {}, "common", problem)
    start = content.get("start")
    return Study(
        path=path,
        base_config=_base_config(content["base_config"], path, problem),
        seeds=tuple(seeds),
        common={**common, **(settings or {})},
        start=None if start is None else _settings(start, "start", problem),
        variants=_variants(content["variants"], variants, problem),
    )


def _base_config(value, path, problem) -> str:
    if not isinstance(value, str):
        raise problem(f"base_config: a path, not {value!r}")
    base_config = os.path.normpath(os.path.join(os.path.dirname(path), value))
    if not os.path.isfile(base_config):
        raise problem(f"base_config: there is no file {base_config}")
    return base_config


def _variants(content, chosen, problem) -> Tuple[Variant, ...]:
    if not isinstance(content, dict) or not content:
        raise problem("variants: a name -> {title, settings}")
    found: List[Variant] = []
    for name, entry in content.items():
        if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
            raise problem(f"variants: {name!r} cannot name a folder; use letters, digits, _ and -")
        if not isinstance(entry, dict) or not set(entry) <= {"title", "settings"}:
            raise problem(f"variants.{name}: only title and settings can stand here")
        settings = _settings(entry.get("settings") or {}, f"variants.{name}.settings", problem)
        found.append(Variant(name, str(entry.get("title", name)), settings))
    unknown = sorted(set(chosen or ()) - {x.name for x in found})
    if unknown:
        raise problem(f"it has no variants {unknown}, only {[x.name for x in found]}")
    return tuple(x for x in found if not chosen or x.name in chosen)


def _settings(content, where, problem) -> Dict[str, object]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise problem(f"{where}: config keys and values, as SOLVER.MAX_ITER: 300")
    return dict(content)


def _is_seed(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
