"""Which classes of a dataset have masks to learn from (base) and which have boxes only (novel)."""

import difflib
import logging
import os
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from detectron2.utils.logger import log_first_n

from .shapes import SHAPE_BASE_CLASSES

__all__ = ["AUTO", "INSTANCES", "ROLES", "ClassSplit", "is_from_annotations", "resolve_class_split"]

ROLES = ("base", "novel", "unused")

# Entries of DATASETS.BASE_CLASSES that look at the training annotations: two names for the same.
AUTO = "auto"
INSTANCES = "instances"

BASE_KEY = "DATASETS.BASE_CLASSES"
NOVEL_KEY = "DATASETS.NOVEL_CLASSES"

# The 20 classes of Pascal VOC under their COCO names.
VOC_CLASSES = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "boat",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "bottle",
    "chair",
    "couch",
    "potted plant",
    "dining table",
    "tv",
)


@dataclass(frozen=True)
class ClassSplit:
    """The classes of a model, and which of them are base and novel.

    Attributes:
        class_names: all classes, by contiguous id.
        base: contiguous ids of the classes whose masks are learned from, ascending.
        novel: contiguous ids of the classes with boxes only, ascending.
    """

    class_names: Tuple[str, ...]
    base: Tuple[int, ...]
    novel: Tuple[int, ...]

    def role(self, class_id: int) -> str:
        """
        Args:
            class_id: contiguous id of a class.

        Returns:
            str: "base", "novel", or "unused" for a class that is neither.
        """
        if class_id in self.base:
            return "base"
        return "novel" if class_id in self.novel else "unused"

    def with_role(self, role: str) -> Tuple[int, ...]:
        """Contiguous ids of the classes with a role (str, one of :data:`ROLES`), ascending."""
        named = {"base": self.base, "novel": self.novel}
        if role in named:
            return named[role]
        others = {*self.base, *self.novel}
        return tuple(i for i in range(len(self.class_names)) if i not in others)

    @property
    def base_names(self) -> Tuple[str, ...]:
        return tuple(self.class_names[i] for i in self.base)

    @property
    def novel_names(self) -> Tuple[str, ...]:
        return tuple(self.class_names[i] for i in self.novel)


def _without(class_names: Sequence[str], left_out: Sequence[str]) -> List[str]:
    return [name for name in class_names if name not in left_out]


# Name of a set -> (classes the dataset must have, function from its classes to those of the set).
_NAMED_SETS = {
    "voc": (VOC_CLASSES, lambda names: list(VOC_CLASSES)),
    "nonvoc": (VOC_CLASSES, lambda names: _without(names, VOC_CLASSES)),
    "shapes_base": (SHAPE_BASE_CLASSES, lambda names: list(SHAPE_BASE_CLASSES)),
}


def _read_class_file(path: str, key: str) -> List[str]:
    """Class names from a text file, one a line; empty lines and lines from '#' are left out."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            lines = [line.strip() for line in f]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{key}: cannot read the file of class names '{path}': {reason}") from None
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ValueError(f"{key}: the file '{path}' names no class")
    return names


def _unknown_class_error(name: str, class_names: Sequence[str], source: str) -> ValueError:
    close = difflib.get_close_matches(name, class_names, n=3)
    if close:
        hint = "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    else:
        shown = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
        hint = f"the classes are {shown}"
    return ValueError(f"{source}: unknown class '{name}'; {hint}")


def _expand(entries: Sequence[str], class_names: Sequence[str], key: str) -> List[int]:
    """Contiguous ids, ascending, of the classes that the entries of a config key stand for."""
    if isinstance(entries, str):
        entries = [entries]
    if not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"{key}: class names must be strings, got {list(entries)!r}")
    source, sets = key, _NAMED_SETS
    if len(entries) == 1 and entries[0].endswith(".txt") and entries[0] not in class_names:
        source, sets = f"{key} (file '{entries[0]}')", {}
        entries = _read_class_file(os.path.expanduser(entries[0]), key)
    ids = {name: i for i, name in enumerate(class_names)}
    names: List[str] = []
    for entry in entries:
        if entry in ids or entry not in sets:
            names.append(entry)
            continue
        needed, members = sets[entry]
        missing = _without(needed, class_names)
        if missing:
            raise ValueError(
                f"{source}: '{entry}' does not fit this dataset, which has no class "
                + ", ".join(missing)
            )
        names.extend(members(class_names))
    chosen = set()
    for name in names:
        if name not in ids:
            raise _unknown_class_error(name, [*class_names, *sets], source)
        if ids[name] in chosen:
            raise ValueError(f"{source}: class '{name}' is named twice")
        chosen.add(ids[name])
    return sorted(chosen)


def resolve_class_split(
    class_names: Sequence[str],
    base: Sequence[str],
    novel: Sequence[str] = (),
    *,
    masked_classes: Optional[Sequence[str]] = None,
    why_no_masks: str = "no class has a mask",
    needs_base: bool = True,
    base_key: str = BASE_KEY,
    novel_key: str = NOVEL_KEY,
) -> ClassSplit:
    """Turn class names into a split.

    An entry is a class name, or the name of a set ("voc", "nonvoc", "shapes_base"); where both
    exist, the class is meant. A single entry ending in ".txt" is a file of class names. A single
    entry "auto" or "instances" as `base` stands for `masked_classes` that are not in `novel`.

    Args:
        class_names: all classes by contiguous id.
        base: entries for the base classes.
        novel: entries for the novel classes; empty for all that are not base.
        masked_classes: names of the classes that have masks in the training data.
        why_no_masks: what an error says if there is none.
        needs_base: whether there has to be a base class, as a model with masks needs one.
        base_key, novel_key: config keys to name in errors.

    Raises:
        ValueError: for unknown names, names given twice or in both lists, unreadable files, and
            if there is no base class where one is needed. It names the key.
    """
    class_names = tuple(class_names)
    novel_ids = _expand(novel, class_names, novel_key)
    if is_from_annotations(base, class_names):
        if masked_classes is None:
            raise ValueError(f"{base_key}: '{base[0]}' needs the annotations of a training dataset")
        masked = {*masked_classes}
        base_ids = [
            i for i, name in enumerate(class_names) if name in masked and i not in set(novel_ids)
        ]
        if needs_base and not base_ids:
            reason = f"no class outside of {novel_key} has a mask" if masked else why_no_masks
            raise ValueError(f"{base_key}: '{base[0]}' finds no base class, because {reason}")
    else:
        base_ids = _expand(base, class_names, base_key)
        if needs_base and not base_ids:
            raise ValueError(
                f"{base_key} names no class. Give the classes that have masks, or a named set "
                f"({', '.join(_NAMED_SETS)}), or '{AUTO}' for all classes that have masks in the "
                "training annotations"
            )
    both = [class_names[i] for i in novel_ids if i in set(base_ids)]
    if both:
        raise ValueError(f"{', '.join(both)}: in both {base_key} and {novel_key}")
    if not novel_ids:
        novel_ids = [i for i in range(len(class_names)) if i not in set(base_ids)]
    if not novel_ids:
        log_first_n(
            logging.INFO,
            f"{base_key} covers every class: there is no novel class, training is fully supervised",
            name=__name__,
            key="message",
        )
    return ClassSplit(class_names, tuple(base_ids), tuple(novel_ids))


def is_from_annotations(base: Sequence[str], class_names: Sequence[str]) -> bool:
    """Whether DATASETS.BASE_CLASSES stands for the classes that have masks in the training data."""
    return len(base) == 1 and base[0] in (AUTO, INSTANCES) and base[0] not in class_names
