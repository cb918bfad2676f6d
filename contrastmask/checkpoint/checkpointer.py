"""Detectron2's checkpointer, strict about what fits the model, and safe in reading and writing."""

import logging
import os
import re
from typing import Callable, Optional, Sequence

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer

from ..atomic_files import write_whole
from .description import DESCRIPTION_KEY, Description
from .layouts import to_project_names
from .reading import (
    UnreadableCheckpointError,
    check_checksums,
    read_pickle_file,
    read_torch_file,
)

logger = logging.getLogger(__name__)

# Parts of a model that nothing but a resumed training needs from a checkpoint.
_TRAINING_ONLY = ("roi_heads.self_training",)


class _SafeReader(Checkpointer):
    """Stands behind Detectron2's checkpointer, which asks it to read .pth files."""

    def _load_file(self, f):
        return self._read(f)


class _WholeFiles:
    """A path manager whose local files take their name when they are complete."""

    def __init__(self, path_manager):
        self._path_manager = path_manager

    def __getattr__(self, name):
        return getattr(self._path_manager, name)

    def open(self, path, mode="r", **kwargs):
        if mode in ("w", "wb") and "://" not in path:
            return write_whole(path, mode, **kwargs)
        return self._path_manager.open(path, mode, **kwargs)


class ContrastMaskCheckpointer(DetectionCheckpointer, _SafeReader):
    """
    Detectron2's checkpointer that also loads the layouts of this package, reads files without
    running code from them, and raises an error where a checkpoint does not fit the model:

    - a tensor with another shape, always;
    - a tensor missing for the backbone, or left over, if the checkpoint has one of the layouts;
    - any missing tensor, if `require_all`, as for evaluation, and when a training is resumed.

    Parts named in `exclude` keep their initial values and are not compared. The teacher of
    self-training may be missing or left over, except where a training is resumed.

    A checkpoint that is written gets its name, and becomes the last one, when it is complete: a
    process that dies while it writes leaves the previous one in place.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        require_all: bool = False,
        exclude: Sequence[str] = (),
        description: Optional[Description] = None,
        read: Callable[[str], dict] = read_torch_file,
        marks_last: bool = True,
        **kwargs,
    ):
        """
        Args:
            model (nn.Module):
            save_dir (str): folder of the checkpoints that are written.
            require_all (bool): every tensor of the model has to be in the checkpoint.
            exclude (sequence[str]): prefixes of names of the model (``MODEL.WEIGHTS_EXCLUDE``).
            description (Description): of the model, to be stored in every checkpoint.
            read (callable): from the path of a .pth file to its content.
            marks_last (bool): a checkpoint that is written becomes the last one, from which a
                training is resumed.
            kwargs: as in :class:`DetectionCheckpointer`.

        Raises:
            ValueError: if there is nothing of a name in `exclude`.
        """
        super().__init__(model, save_dir, **kwargs)
        self.path_manager = _WholeFiles(self.path_manager)
        self.require_all = require_all
        self.exclude = tuple(exclude)
        self.description = description
        self._read = read
        self._marks_last = marks_last
        names = self.model.state_dict()
        for part in self.exclude:
            if not any(_is_part(name, part) for name in names):
                raise ValueError(f"MODEL.WEIGHTS_EXCLUDE: the model has no part named {part!r}")
        self._file = None
        self._layout = None
        self._resuming = False

    def resume_or_load(self, path, *, resume=True):
        """
        As in Detectron2; what resumes a training has to be complete, whatever is excluded. If the
        last checkpoint is damaged or missing, the newest of the older ones takes its place.
        """
        if not (resume and self.has_checkpoint()):
            return super().resume_or_load(path, resume=resume)
        usual = self.require_all, self.exclude
        self.require_all, self.exclude, self._resuming = True, (), True
        try:
            return self._resume()
        finally:
            self.require_all, self.exclude = usual
            self._resuming = False

    def _resume(self):
        last = self.get_checkpoint_file()
        first_error = None
        for file in (last, *_older_checkpoints(last)):
            try:
                check_checksums(file)
                loaded = self.load(file)
            except (FileNotFoundError, UnreadableCheckpointError) as error:
                logger.error(f"Cannot resume: {error}")
                first_error = first_error or error
                continue
            if first_error:
                logger.warning(f"Resumed from the older checkpoint {file} instead of {last}")
            return loaded
        raise type(first_error)(
            f"{first_error}. It is named in {os.path.join(self.save_dir, 'last_checkpoint')}, and "
            "no older model_<iteration>.pth there can be read: start again without --resume"
        ) from first_error

    def save(self, name, **kwargs):
        """As in Detectron2, with the description of the model."""
        if self.description is not None:
            kwargs[DESCRIPTION_KEY] = self.description.state_dict()
        super().save(name, **kwargs)

    def tag_last_checkpoint(self, last_filename_basename):
        """As in Detectron2, if this checkpointer marks the last one."""
        if self._marks_last:
            super().tag_last_checkpoint(last_filename_basename)

    def load(self, path, *args, **kwargs):
        """
        As in Detectron2.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it cannot be read or does not fit the model, or none is named although
                every tensor has to be in it.
        """
        if not path and self.require_all:
            raise ValueError(
                "MODEL.WEIGHTS is empty, the model would have random weights: give the checkpoint "
                "of a trained model, such as model_final.pth in the OUTPUT_DIR of its training"
            )
        if path:
            local = self.path_manager.get_local_path(path.split("?")[0])
            if not os.path.isfile(local):
                raise FileNotFoundError(f"checkpoint {path} does not exist (see MODEL.WEIGHTS)")
        try:
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # or Detectron2 would not load after an error

    def _load_file(self, filename):
        self._file = filename
        if filename.endswith(".pyth"):  # Detectron2 would run code from it
            raise ValueError(f"checkpoint {filename}: files of pycls are not supported")
        if filename.endswith(".pkl"):
            loaded = read_pickle_file(filename)
        else:
            loaded = super()._load_file(filename)
        try:
            loaded, self._layout = to_project_names(loaded)
        except ValueError as error:
            raise ValueError(f"checkpoint {filename}: {error}") from error
        if self._layout:
            logger.info(f"{filename} has the layout {self._layout.name}: its tensors are renamed")
        return loaded

    def _load_model(self, checkpoint):
        values = self.model.state_dict()
        kept = {name: value.clone() for name, value in values.items() if self._is_excluded(name)}
        incompatible = super()._load_model(checkpoint)
        for name, value in kept.items():
            values[name].copy_(value)
        if kept:
            logger.info(f"MODEL.WEIGHTS_EXCLUDE: {len(kept)} tensors keep their initial values")

        for names in (incompatible.missing_keys, incompatible.unexpected_keys):
            # Frozen batch norm does not count batches.
            names[:] = [x for x in names if not x.endswith(".num_batches_tracked")]
            names[:] = [x for x in names if not self._is_excluded(x)]
            if names is incompatible.unexpected_keys or not self._resuming:
                names[:] = [x for x in names if not any(_is_part(x, p) for p in _TRAINING_ONLY)]
        shapes = incompatible.incorrect_shapes
        shapes[:] = [x for x in shapes if not self._is_excluded(x[0])]
        problem = self._misfit(incompatible)
        if problem:
            self._log_incompatible_keys(incompatible)  # all of them; the error names the first
            raise ValueError(f"checkpoint {self._file} does not fit the model: {problem}")
        if self._layout and self._layout.is_classifier:
            logger.info(f"It has {self._layout.covers.rstrip('.')}; other parts start untrained")
            incompatible.missing_keys.clear()
        return incompatible

    def _misfit(self, incompatible):
        """str or None: what is wrong with the names and shapes."""
        if incompatible.incorrect_shapes:
            (name, in_checkpoint, in_model), *others = incompatible.incorrect_shapes
            return (
                f"{name} has the shape {in_checkpoint} in the checkpoint and {in_model} in the "
                f"model ({len(others)} more tensors differ){self._how_to_exclude(name)}"
            )
        covers = self._layout.covers if self._layout else None
        missing, unused = incompatible.missing_keys, incompatible.unexpected_keys
        if not self.require_all:
            missing = [x for x in missing if covers and x.startswith(covers)]
        if missing:
            return (
                f"{len(missing)} tensors of the model are not in it, the first is {missing[0]}"
                f"{self._how_to_exclude(missing[0])}"
            )
        unused = [x for x in unused if covers and x.startswith(covers)]
        if unused:
            return f"{len(unused)} tensors have no place in the model, the first is {unused[0]}"
        return None

    def _how_to_exclude(self, name):
        if self.require_all:  # evaluation or a resumed training, where nothing is excluded
            return ""
        part = ".".join(name.split(".")[:2])
        return f". To keep the initial values of a part: MODEL.WEIGHTS_EXCLUDE \"['{part}']\""

    def _is_excluded(self, name):
        return any(_is_part(name, part) for part in self.exclude)


def _older_checkpoints(file):
    """Paths of the checkpoints that were written before `file`, the newest first."""
    folder, name = os.path.split(file)
    number = re.compile(r"model_(\d{7,})\.pth")
    match = number.fullmatch(name)
    if not match and name != "model_final.pth":
        return []
    found = [m for m in map(number.fullmatch, os.listdir(folder)) if m]
    older = [m for m in found if not match or int(m[1]) < int(match[1])]
    return [os.path.join(folder, m[0]) for m in sorted(older, key=lambda m: -int(m[1]))]


def _is_part(name, part):
    part = part.rstrip(".")
    return name == part or name.startswith(part + ".")
