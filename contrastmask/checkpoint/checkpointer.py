"""The checkpointer of the project: Detectron2's, plus layouts that it recognises by their names."""

import logging
import os
import re

from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer, _strip_prefix_if_present

from ..atomic_files import AtomicFiles, remove_unfinished
from ..output import OutputError, describe, os_error_behind
from .description import DESCRIPTION_KEY
from .fit import check_fit
from .layouts import MODEL_ZOO_FILES, read_model_zoo_file, to_project_names, unwrap_state_dict
from .reading import UnreadableCheckpointError, check_checksums, read_torch_file

logger = logging.getLogger(__name__)

_NUMBERED = r"model_(\d{7,})\.pth"
_WRITTEN_IN_TRAINING = rf"{_NUMBERED}|model_final\.pth|last_checkpoint"


class _Loader(Checkpointer):
    """
    Stands behind Detectron2's checkpointer, which asks it to read .pth files, and to load tensors
    after it has matched their names with those of the model.
    """

    exclude = ()

    def _load_file(self, f):
        loaded = read_torch_file(f)
        if not isinstance(loaded, dict):
            raise ValueError(
                f"checkpoint {f} holds a {type(loaded).__name__}, not a dict of tensors"
            )
        return loaded

    def _load_model(self, checkpoint):
        weights = checkpoint["model"]
        _strip_prefix_if_present(weights, "module.")  # as it is done next: names are final now
        unused = [k for k in weights if self._is_excluded(k)]
        for k in unused:
            del weights[k]
        incompatible = super()._load_model(checkpoint)
        missing = incompatible.missing_keys
        kept = [k for k in missing if self._is_excluded(k)]
        missing[:] = [k for k in missing if k not in set(kept)]
        if kept or unused:
            logger.info(
                f"MODEL.WEIGHTS_EXCLUDE: {len(kept)} tensors of the model keep their initial "
                f"values, {len(unused)} of the checkpoint are not used"
            )
        return incompatible

    def _is_excluded(self, name):
        return any(_is_part(name, part) for part in self.exclude)


class ContrastMaskCheckpointer(DetectionCheckpointer, _Loader):
    """
    Detectron2's checkpointer that also loads the layouts of this package, reads files without
    running code from them, and raises an error where a checkpoint does not fit the model:

    - a tensor with another shape, always;
    - a tensor missing for the backbone, or left over, if the checkpoint has one of the layouts;
    - any missing tensor, if `require_all`, as for evaluation, and when a training is resumed.

    Parts named in `exclude` keep their initial values and are not compared.

    A checkpoint that is written gets its name, and becomes the last one, when it is complete: a
    process that dies while it writes leaves the previous one in place.
    """

    def __init__(
        self, model, save_dir="", *, require_all=False, exclude=(), description=None, **kwargs
    ):
        """
        Args:
            model (nn.Module):
            save_dir (str): folder of the checkpoints that are written.
            require_all (bool): every tensor of the model has to be in the checkpoint.
            exclude (sequence[str]): prefixes of names of the model (``MODEL.WEIGHTS_EXCLUDE``).
            description (Description or None): of the model, to be stored in every checkpoint.
            kwargs: as in :class:`DetectionCheckpointer`.

        Raises:
            ValueError: if there is nothing of a name in `exclude`.
        """
        super().__init__(model, save_dir, **kwargs)
        self.path_manager = AtomicFiles(self.path_manager)
        self.require_all = require_all
        self.exclude = tuple(exclude)
        self.description = description
        names = self.model.state_dict()
        for part in self.exclude:
            if not any(_is_part(name, part) for name in names):
                raise ValueError(f"MODEL.WEIGHTS_EXCLUDE: the model has no part named {part!r}")
        self._file = None
        self._layout = None

    def resume_or_load(self, path, *, resume=True):
        """
        As in Detectron2; what resumes a training has to be complete, whatever is excluded. If the
        last checkpoint is damaged or missing, the newest of the older ones takes its place.
        """
        if not (resume and self.has_checkpoint()):
            return super().resume_or_load(path, resume=resume)
        usual = self.require_all, self.exclude
        self.require_all, self.exclude = True, ()
        try:
            return self._resume()
        finally:
            self.require_all, self.exclude = usual

    def _resume(self):
        last = self.get_checkpoint_file()
        errors = []
        for file in (last, *_older_checkpoints(last)):
            try:
                check_checksums(file)
                loaded = self.load(file)
            except (FileNotFoundError, UnreadableCheckpointError) as error:
                errors.append(error)
                logger.error(f"Cannot resume from the checkpoint: {error}")
                continue
            if errors:
                logger.warning(f"Resumed from the older checkpoint {file} instead of {last}")
            return loaded
        raise type(errors[0])(
            f"{errors[0]}. It is named in {os.path.join(self.save_dir, 'last_checkpoint')}, and no "
            "older model_<iteration>.pth there can be read. Without --resume training starts anew"
        ) from errors[0]

    def save(self, name, **kwargs):
        """
        As in Detectron2.

        Raises:
            OutputError: if the file cannot be written, for example because the disk is full. The
                previous checkpoint stays.
        """
        if self.save_to_disk and self.save_dir:
            for path in remove_unfinished(self.save_dir, _WRITTEN_IN_TRAINING):
                logger.info(f"Removed {path}: it was not finished when training was interrupted")
        if self.description is not None:
            kwargs[DESCRIPTION_KEY] = self.description.state_dict()
        try:
            super().save(name, **kwargs)
        except (OSError, RuntimeError) as error:  # torch.save turns the former into the latter
            cause = os_error_behind(error)
            if cause is None:
                raise
            last = self.get_checkpoint_file()
            kept = f"The last complete one is {last}" if last else "There is no earlier one"
            path = os.path.join(self.save_dir, f"{name}.pth")
            raise OutputError(f"checkpoint {describe(path, cause)}. {kept}") from error

    def load(self, path, *args, **kwargs):
        """
        As in Detectron2.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it cannot be read or does not fit the model, or none is named although
                every tensor has to be in it.
        """
        self._layout = None
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
        if filename.endswith(MODEL_ZOO_FILES):
            return read_model_zoo_file(filename)
        loaded = super()._load_file(filename)
        try:
            loaded["model"], self._layout = to_project_names(unwrap_state_dict(loaded["model"]))
        except ValueError as error:
            raise ValueError(f"checkpoint {filename}: {error}") from error
        if self._layout:
            logger.info(f"{filename} has the layout {self._layout.name}: its tensors are renamed")
        return loaded

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        for keys in (incompatible.missing_keys, incompatible.unexpected_keys):
            counters = [k for k in keys if k.endswith(".num_batches_tracked")]
            keys[:] = [k for k in keys if k not in set(counters)]
            if counters and keys is incompatible.unexpected_keys:
                logger.info(
                    f"{len(counters)} counters num_batches_tracked of batch norm are not used: "
                    "frozen batch norm does not count"
                )
        try:
            check_fit(
                self._file,
                incompatible,
                covers=self._layout.covers if self._layout else (),
                require_all=self.require_all,
            )
        except ValueError:
            self._log_incompatible_keys(incompatible)  # all of them; the error names the first
            raise
        return incompatible


def _older_checkpoints(file):
    """Paths of the checkpoints that were written before `file`, the newest first."""
    folder, name = os.path.split(file)
    number = re.compile(_NUMBERED)
    match = number.fullmatch(name)
    if not match and name != "model_final.pth":
        return []
    found = [m for m in map(number.fullmatch, os.listdir(folder)) if m]
    older = [m for m in found if not match or int(m[1]) < int(match[1])]
    return [os.path.join(folder, m[0]) for m in sorted(older, key=lambda m: -int(m[1]))]


def _is_part(name, part):
    part = part.rstrip(".")
    return name == part or name.startswith(part + ".")
