"""
What a checkpoint says about its model, so that nothing else is needed to use it: the config, the
names of the classes, and which of them are base and novel.
"""

import logging
import os
from dataclasses import asdict, dataclass
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from .. import __version__
from ..config import default_config, get_config, merge_overrides, naming_config
from ..data import (
    AnnotationFileError,
    ClassSplit,
    class_split_from_config,
    register_datasets,
    resolve_class_split,
)
from ..data.class_split import BASE_KEY, NOVEL_KEY
from .reading import read_torch_file

__all__ = [
    "CLASSES_KEY",
    "DESCRIPTION_KEY",
    "Description",
    "model_class_split",
    "model_config",
]

logger = logging.getLogger(__name__)

# Key of a checkpoint file.
DESCRIPTION_KEY = "contrastmask"
CLASSES_KEY = "DATASETS.CLASS_NAMES"
# Last parts of the keys of MODEL that may differ between training and use: they concern training,
# the device, colors, or how many detections there are.
_FREE_KEYS = frozenset(
    "WEIGHTS WEIGHTS_EXCLUDE DEVICE FROZEN_PARTS FREEZE_AT CHANNELS_LAST BATCH_SIZE_PER_IMAGE "
    "POSITIVE_FRACTION IOU_THRESHOLDS IOU_LABELS BOUNDARY_THRESH LOW_QUALITY_MIN_IOU "
    "INCLUDE_GT_BOXES PROPOSAL_APPEND_GT TRAIN_ON_PRED_BOXES GT_BOXES_ONLY LOGIT_INIT_STD "
    "BBOX_REG_LOSS_TYPE BBOX_REG_LOSS_WEIGHT SMOOTH_L1_BETA LOSS_WEIGHT MAX_COLOR_DISTANCE WARMUP "
    "START RAMP DECAY AT_TEST WEIGHT TEST_WEIGHT TEST_BIAS DISTANCE COLOR_DISTANCE "
    "DELTA FALLBACK_DELTA MIN_QUERY_SIZE RING_WIDTH MIN_SET_SIZE SAMPLE_FRACTION LOSS_FORM "
    "TEMPERATURE_EASY TEMPERATURE_HARD MAX_ROIS RAMP_START RAMP_STEPS RAMP_FULL_STEP "
    "PRE_NMS_TOPK_TRAIN POST_NMS_TOPK_TRAIN PRE_NMS_TOPK_TEST POST_NMS_TOPK_TEST NMS_THRESH "
    "NMS_THRESH_TEST SCORE_THRESH_TEST TEST_ROIS_PER_CHUNK".split()
)


@dataclass(frozen=True)
class Description:
    """
    Attributes:
        version: of the project that wrote the checkpoint.
        config: of the training, as YAML text.
        class_names: by contiguous id.
        base, novel: names of the classes with masks to learn from, and of those with boxes only.
    """

    version: str
    config: str
    class_names: Tuple[str, ...]
    base: Tuple[str, ...]
    novel: Tuple[str, ...]

    @classmethod
    def of(cls, cfg: CfgNode, class_split: ClassSplit) -> "Description":
        """The description of a model with this config and these classes."""
        names = class_split.class_names, class_split.base_names, class_split.novel_names
        return cls(__version__, cfg.dump(), *names)

    @classmethod
    def read(
        cls, path: str, read: Callable[[str], dict] = read_torch_file
    ) -> Optional["Description"]:
        """
        Args:
            path: of a checkpoint, also one that only Detectron2's ``PathManager`` knows.
            read: from the path of a .pth file to its content.

        Returns:
            What the checkpoint says about its model; None if it says nothing.

        Raises:
            FileNotFoundError, ValueError: if there is no such file, or it cannot be read.
        """
        local = PathManager.get_local_path(path.split("?")[0])
        if not os.path.isfile(local):
            raise FileNotFoundError(f"checkpoint {path} does not exist (see MODEL.WEIGHTS)")
        content = None if local.endswith(".pkl") else read(local)
        state = content.get(DESCRIPTION_KEY) if isinstance(content, dict) else None
        if state is None:
            return None
        try:
            names = [tuple(map(str, state[key])) for key in ("class_names", "base", "novel")]
            return cls(str(state["version"]), str(state["config"]), *names)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"checkpoint {path}: its entry '{DESCRIPTION_KEY}' is not as this project writes it"
            ) from error

    def state_dict(self) -> Dict[str, object]:
        """Strings and lists of strings only, which ``torch.load(weights_only=True)`` reads."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def training_config(self) -> CfgNode:
        """
        The config of the training, without keys that this version does not know, and with the
        device of this machine.
        """
        cfg, stored = default_config(), CfgNode.load_cfg(self.config)
        # Keys outside of MODEL are those of another version of Detectron2, for training.
        unknown = [x for x in _remove_unknown(stored, cfg) if x.startswith("MODEL.")]
        if unknown:
            logger.warning(f"Unknown keys in the config of the checkpoint: {', '.join(unknown)}")
        cfg.merge_from_other_cfg(stored)
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
        return cfg

    def set_classes(self, cfg: CfgNode, overridden: Sequence[str]) -> None:
        """Name the classes in a config, so that nobody has to look at training data for them.

        Args:
            cfg: changed in place.
            overridden: keys that stay as they are.
        """
        cfg.DATASETS.CLASS_NAMES = list(self.class_names)
        if BASE_KEY not in overridden:
            cfg.DATASETS.BASE_CLASSES = list(self.base)
            if NOVEL_KEY not in overridden:
                cfg.DATASETS.NOVEL_CLASSES = list(self.novel)

    def contradictions(self, cfg: CfgNode, overridden: Sequence[str]) -> List[str]:
        """
        Args:
            cfg: a config to use the checkpoint with.
            overridden: keys that are meant to differ.

        Returns:
            What it says differently of the model, its input and its classes; names the keys.
        """
        ours = dict(_items(self.training_config()))
        if cfg.MODEL.ROI_HEADS.NUM_CLASSES == 0:  # follows from the classes, which come below
            overridden = [*overridden, "MODEL.ROI_HEADS.NUM_CLASSES"]
        found = [
            f"{key} is {value!r} in the config and {ours[key]!r} in the checkpoint"
            for key, value in sorted(_items(cfg))
            if (key.startswith("MODEL.") or key == "INPUT.FORMAT")
            and not (key in overridden or key.split(".")[-1] in _FREE_KEYS)
            and value != ours[key]
        ]
        if cfg.DATASETS.CLASS_NAMES not in ([], list(self.class_names)):
            found.append(f"{CLASSES_KEY} is {', '.join(self.class_names)} in the checkpoint")
        if BASE_KEY in overridden:
            return found
        try:
            split = resolve_class_split(
                self.class_names,
                cfg.DATASETS.BASE_CLASSES,
                cfg.DATASETS.NOVEL_CLASSES,
                masked_classes=self.base,
                needs_base=cfg.MODEL.MASK_ON,
            )
        except ValueError as error:
            return [*found, str(error)]
        for key, theirs, names in (
            (BASE_KEY, split.base_names, self.base),
            (NOVEL_KEY, split.novel_names, self.novel),
        ):
            other = sorted({*theirs} ^ {*names})
            if other and key not in overridden:
                found.append(f"{key} differs in {', '.join(other)}")
        return found


def model_config(
    config_file: str,
    opts: Sequence[str] = (),
    weights: str = "",
    read: Callable[[str], dict] = read_torch_file,
) -> CfgNode:
    """The config to use a trained model with.

    It comes from the checkpoint, if that has one. The classes then do too, and nothing here opens
    training data.

    Args:
        config_file: a YAML file, or its name in ``configs``; "" for the config of the checkpoint.
        opts: KEY VALUE pairs that override either.
        weights: the checkpoint; "" for ``MODEL.WEIGHTS``.
        read: from the path of a .pth file to its content.

    Returns:
        CfgNode: not frozen, with the checkpoint as ``MODEL.WEIGHTS``.

    Raises:
        FileNotFoundError, ValueError: if there is no checkpoint, no config, or if they contradict
            each other; it names the keys.
    """
    cfg = get_config(config_file, opts) if config_file else None
    overridden = list(opts)[::2]
    if not weights:
        weights = (
            cfg.MODEL.WEIGHTS if cfg else dict(zip(overridden, opts[1::2])).get("MODEL.WEIGHTS")
        )
    if not weights:
        raise ValueError(
            "MODEL.WEIGHTS is empty: give the checkpoint of a trained model, such as "
            "model_final.pth in the OUTPUT_DIR of its training"
        )
    description = Description.read(weights, read)
    if cfg is None:
        if description is None:
            raise ValueError(
                f"checkpoint {weights} does not hold its config: give the config file that the "
                "model was trained with"
            )
        with naming_config(f"config in checkpoint {weights}"):
            cfg = description.training_config()
        merge_overrides(cfg, opts)
    elif description is not None:
        differing = description.contradictions(cfg, overridden)
        if differing:
            raise ValueError(
                f"checkpoint {weights} contradicts config file {config_file}: "
                f"{'; '.join(differing)}. Leave the config file out to use the config of the "
                "checkpoint, or override keys that are meant to differ"
            )
    if description is not None:
        description.set_classes(cfg, overridden)
    cfg.MODEL.WEIGHTS = weights
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES == 0:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(model_class_split(cfg).class_names)
    return cfg


def model_class_split(cfg: CfgNode) -> ClassSplit:
    """
    Args:
        cfg: of a trained model.

    Returns:
        Its classes; from the data in ``DATASETS.TRAIN`` if the config does not name them.
    """
    if cfg.DATASETS.CLASS_NAMES:
        return resolve_class_split(
            cfg.DATASETS.CLASS_NAMES,
            cfg.DATASETS.BASE_CLASSES,
            cfg.DATASETS.NOVEL_CLASSES,
            needs_base=cfg.MODEL.MASK_ON,
        )
    if not cfg.DATASETS.TRAIN:
        raise ValueError(f"The names of the classes are not known: set {CLASSES_KEY}")
    register_datasets(cfg)
    try:
        return class_split_from_config(cfg)
    except (AnnotationFileError, FileNotFoundError) as error:
        raise ValueError(
            f"{error}. Without the training data, name the classes in {CLASSES_KEY} and {BASE_KEY}"
        ) from error


def _items(cfg: CfgNode, prefix: str = "") -> Iterator[Tuple[str, object]]:
    """Full keys and values, with lists for tuples, which YAML does not have."""
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _without_tuples(value)


def _without_tuples(value):
    return [_without_tuples(x) for x in value] if isinstance(value, (list, tuple)) else value


def _remove_unknown(cfg: CfgNode, known: CfgNode, prefix: str = "") -> Iterator[str]:
    for key in list(cfg):
        if key not in known:
            del cfg[key]
            yield prefix + key
        elif isinstance(cfg[key], CfgNode) and isinstance(known[key], CfgNode):
            yield from _remove_unknown(cfg[key], known[key], f"{prefix}{key}.")
