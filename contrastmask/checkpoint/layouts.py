"""Names of tensors in the checkpoints of other projects, and their names here."""

import re
from dataclasses import dataclass
from typing import Callable, Optional, Tuple

import numpy as np
import torch

from .reading import read_pickle_file, read_tensors


@dataclass(frozen=True)
class Layout:
    """
    A way of naming the tensors of a checkpoint.

    Attributes:
        name: for the log.
        marks: names of tensors that together tell this layout from others.
        rename: function of one name to the name in this project's model, None for those of a
            classifier of whole images, which are left out. Other names without a place there are
            returned as they are, and are reported as unused when they are loaded.
        covers: prefix of the model's names. Of this part a checkpoint in this layout has to fill
            every tensor and to leave none over.
        is_classifier: whether it holds no other part of a detector.
    """

    name: str
    marks: Tuple[str, ...]
    rename: Callable[[str], Optional[str]]
    covers: str
    is_classifier: bool = False

    def convert(self, state_dict: dict) -> dict:
        """
        Args:
            state_dict (dict[str, Tensor]): in this layout.

        Returns:
            dict[str, Tensor]: those that are not left out, under this project's names; half
            precision becomes float32.

        Raises:
            ValueError: if two tensors get one name.
        """
        converted = {}
        for name, value in state_dict.items():
            new_name = self.rename(name)
            if new_name is None:
                continue
            if new_name in converted:
                raise ValueError(f"two tensors of the {self.name} layout become {new_name}")
            converted[new_name] = value.float() if value.is_floating_point() else value
        return converted


def read_weights(path: str) -> Tuple[dict, Optional[Layout]]:
    """
    Args:
        path (str): a local file in one of the layouts or in one that Detectron2 loads. Python
            objects in it are left out, and none of their code is run.

    Returns:
        tuple[dict, Layout]: what a checkpoint in Detectron2's layout has to hold, and the layout
        the file had, None for Detectron2's. Under "model" are the tensors, with this project's
        names; or with those of the file, if Detectron2 matches them ("matching_heuristics").

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it cannot be read.
    """
    loaded = read_pickle_file(path) if path.endswith(".pkl") else read_tensors(path)
    try:
        loaded, layout = to_project_names(loaded)
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from error
    kept = ("model", "__author__", "matching_heuristics")
    return {key: loaded[key] for key in kept if key in loaded}, layout


def to_project_names(loaded: dict) -> Tuple[dict, Optional[Layout]]:
    """
    Args:
        loaded (dict): content of a file: a state dict, or one under "model" or "state_dict", with
            tensors or arrays, perhaps with the prefix "module." of data parallel training.

    Returns:
        tuple[dict, Layout]: the content, with tensors under this project's names in "model", and
        the layout that they had, None for one that Detectron2 loads.

    Raises:
        ValueError: if there are other things than tensors in it, or if it was written by
            MMDetection before 2.0, which has the background class first.
    """
    weights, meta = loaded, None
    for key in ("model", "state_dict"):
        if isinstance(weights.get(key), dict):
            weights, meta = weights[key], weights.get("meta")
    version = str(meta.get("mmdet_version")) if isinstance(meta, dict) else ""
    if re.match(r"[01]\.", version):
        raise ValueError(
            f"it was written by MMDetection {version}, whose order of classes is another one; only "
            "checkpoints of MMDetection 2.0 and later can be loaded"
        )
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"it has an entry {name!r}, which is not the name of a tensor")
        if isinstance(value, np.ndarray) and value.dtype != object:
            weights[name] = torch.as_tensor(value)
        elif not isinstance(value, torch.Tensor):
            raise ValueError(f"its entry {name!r} is a {type(value).__name__}, not a tensor")

    stripped = weights
    if next(iter(weights), "").startswith("module."):
        stripped = {name.removeprefix("module."): v for name, v in weights.items()}
    for layout in LAYOUTS:
        if all(name in stripped for name in layout.marks):
            return {**loaded, "model": layout.convert(stripped)}, layout
    return {**loaded, "model": weights}, None


def _rename_resnet(name):
    """From torchvision's ResNet, any depth, width or number of groups, to Detectron2's."""
    stem = re.fullmatch(r"(conv|bn)1\.(\w+)", name)
    if stem:
        return f"stem.conv1.{'norm.' if stem[1] == 'bn' else ''}{stem[2]}"
    block = re.fullmatch(r"layer(\d+)\.(\d+)\.(conv|bn|downsample\.)(\d+)\.(\w+)", name)
    if not block:
        return None  # the ImageNet classifier
    stage, index, kind, number, field = block.groups()
    if kind == "downsample.":
        layer, is_norm = "shortcut", number == "1"
    else:
        layer, is_norm = f"conv{number}", kind == "bn"
    return f"res{int(stage) + 1}.{index}.{layer}.{'norm.' if is_norm else ''}{field}"


def _rename_torchvision(name):
    if name.startswith("fc."):
        return None
    renamed = _rename_resnet(name)
    return name if renamed is None else "backbone.bottom_up." + renamed


def _rename_efficientnet(name):
    is_classifier = name.startswith(("_conv_head.", "_bn1.", "_fc."))
    return None if is_classifier else "backbone.bottom_up.net." + name


_BOX_BRANCHES = {"shared_convs": "shared", "cls_convs": "cls_branch", "reg_convs": "reg_branch"}

# Prefixes in MMDetection, the authors' framework -> ours. Lists that count from 0 there count from
# 1 here, and the levels of the feature pyramid from 2 (their stride is 2 ** level).
_MMDETECTION_RULES = [
    (r"neck\.lateral_convs\.(\d+)\.conv\.", lambda m: f"backbone.fpn_lateral{int(m[1]) + 2}."),
    (r"neck\.fpn_convs\.(\d+)\.conv\.", lambda m: f"backbone.fpn_output{int(m[1]) + 2}."),
    (r"rpn_head\.rpn_conv\.", "proposal_generator.rpn_head.conv."),
    (r"rpn_head\.rpn_cls\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn_head\.rpn_reg\.", "proposal_generator.rpn_head.anchor_deltas."),
    (
        r"roi_head\.bbox_head\.(shared_convs|cls_convs|reg_convs)\.(\d+)\.conv\.",
        lambda m: f"roi_heads.box_head.{_BOX_BRANCHES[m[1]]}.conv{int(m[2]) + 1}.",
    ),
    (r"roi_head\.bbox_head\.fc_cls\.", "roi_heads.box_predictor.cls_score."),
    (r"roi_head\.bbox_head\.fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
    (
        r"roi_head\.mask_head\.convs\.(\d+)\.conv\.",
        lambda m: f"roi_heads.mask_head.convs.mask_fcn{int(m[1]) + 1}.",
    ),
    (r"roi_head\.mask_head\.upsample\.", "roi_heads.mask_head.deconv."),
    (r"roi_head\.mask_head\.conv_logits\.", "roi_heads.mask_head.predictor."),
    (r"roi_head\.mask_head\.fuseconv\.", "roi_heads.mask_head.fuse."),
    (
        r"roi_head\.mask_head\.contrastive_head\.encoder\.(\d+)\.conv\.",
        lambda m: f"roi_heads.contrastive_head.encoder.conv{int(m[1]) + 1}.",
    ),
    (
        r"roi_head\.mask_head\.contrastive_head\.projector\.(\d+)\.(conv|bn)\.",
        lambda m: (
            f"roi_heads.contrastive_head.projector.convs.conv{int(m[1]) + 1}."
            + ("norm." if m[2] == "bn" else "")
        ),
    ),
    (
        r"roi_head\.mask_head\.contrastive_head\.projector\.\d+\.(?=weight$|bias$)",
        "roi_heads.contrastive_head.projector.linear.",
    ),
]


def _rename_mmdetection(name):
    if name.startswith("backbone."):
        renamed = _rename_resnet(name[len("backbone.") :])
        return name if renamed is None else "backbone.bottom_up." + renamed
    for pattern, new in _MMDETECTION_RULES:
        if re.match(pattern, name):
            return re.sub(pattern, new, name, count=1)
    return name


LAYOUTS = (
    Layout(
        "MMDetection detector",
        marks=("backbone.conv1.weight", "rpn_head.rpn_conv.weight"),
        rename=_rename_mmdetection,
        covers="backbone.",
    ),
    Layout(
        "torchvision ResNet",
        marks=("conv1.weight", "bn1.weight", "layer1.0.conv1.weight"),
        rename=_rename_torchvision,
        covers="backbone.bottom_up.",
        is_classifier=True,
    ),
    Layout(
        "EfficientNet-Lite (ImageNet)",
        marks=("_conv_stem.weight", "_blocks.0._bn1.weight"),
        rename=_rename_efficientnet,
        covers="backbone.bottom_up.net.",
        is_classifier=True,
    ),
)
