"""Detectors trained with MMDetection 2.x: the layout of the authors' checkpoints."""

import re

from .layout import Layout
from .torchvision_resnet import rename_resnet

_BOX_BRANCHES = {"shared_convs": "shared", "cls_convs": "cls_branch", "reg_convs": "reg_branch"}

# Pattern of a prefix -> ours. Lists that count from 0 there count from 1 here, and the levels of
# the feature pyramid from 2 (their stride is 2 ** level).
_RULES = [
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
_RULES = [(re.compile(pattern), new) for pattern, new in _RULES]


def check_mmdetection_version(meta):
    """
    Args:
        meta (dict): what MMDetection stores beside the state dict.

    Raises:
        ValueError: for MMDetection before 2.0, which has the background class first.
    """
    version = str(meta.get("mmdet_version", "")) if isinstance(meta, dict) else ""
    if re.match(r"[01]\.", version):
        raise ValueError(
            f"it was written by MMDetection {version}, whose order of classes is another one; only "
            "checkpoints of MMDetection 2.0 and later can be loaded"
        )


def _recognises(state_dict):
    return "backbone.conv1.weight" in state_dict and "rpn_head.rpn_conv.weight" in state_dict


def _rename(name):
    if name.startswith("backbone."):
        renamed = rename_resnet(name[len("backbone.") :])
        return name if renamed is None else "backbone.bottom_up." + renamed
    for pattern, new in _RULES:
        if pattern.match(name):
            return pattern.sub(new, name, count=1)
    return name


MMDETECTION = Layout("MMDetection 2.x detector", _recognises, _rename, covers=("backbone.",))
