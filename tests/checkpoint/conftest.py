"""A narrow detector and its tensors under the names of MMDetection."""

import re

import pytest
import torch
from detectron2.modeling import build_model

from contrastmask.checkpoint import ContrastMaskCheckpointer

# Ours -> theirs; the reverse of what the package does, written on its own.
_OFFICIAL_NAMES = [
    (r"^backbone\.bottom_up\.", "backbone."),
    (r"^backbone\.stem\.conv1\.norm\.", "backbone.bn1."),
    (r"^backbone\.stem\.conv1\.", "backbone.conv1."),
    (r"^backbone\.res(\d)\.(\d+)\.shortcut\.norm\.", r"backbone.layer<\1>.\2.downsample.1."),
    (r"^backbone\.res(\d)\.(\d+)\.shortcut\.", r"backbone.layer<\1>.\2.downsample.0."),
    (r"^backbone\.res(\d)\.(\d+)\.conv(\d)\.norm\.", r"backbone.layer<\1>.\2.bn\3."),
    (r"^backbone\.res(\d)\.(\d+)\.conv(\d)\.", r"backbone.layer<\1>.\2.conv\3."),
    (r"^backbone\.fpn_lateral(\d)\.", r"neck.lateral_convs.<<\1>>.conv."),
    (r"^backbone\.fpn_output(\d)\.", r"neck.fpn_convs.<<\1>>.conv."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn_head.rpn_conv."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn_head.rpn_cls."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn_head.rpn_reg."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "roi_head.bbox_head.fc_cls."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "roi_head.bbox_head.fc_reg."),
    (r"^roi_heads\.box_head\.", "roi_head.bbox_head."),
    (r"bbox_head\.shared\.conv(\d)\.", r"bbox_head.shared_convs.<\1>.conv."),
    (r"bbox_head\.(cls|reg)_branch\.conv(\d)\.", r"bbox_head.\1_convs.<\2>.conv."),
    (r"^roi_heads\.mask_head\.convs\.mask_fcn(\d)\.", r"roi_head.mask_head.convs.<\1>.conv."),
    (r"^roi_heads\.mask_head\.deconv\.", "roi_head.mask_head.upsample."),
    (r"^roi_heads\.mask_head\.predictor\.", "roi_head.mask_head.conv_logits."),
    (r"^roi_heads\.mask_head\.fuse\.", "roi_head.mask_head.fuseconv."),
    (r"^roi_heads\.contrastive_head\.", "roi_head.mask_head.contrastive_head."),
    (r"encoder\.conv(\d)\.", r"encoder.<\1>.conv."),
    (r"projector\.convs\.conv(\d)\.norm\.", r"projector.<\1>.bn."),
    (r"projector\.convs\.conv(\d)\.", r"projector.<\1>.conv."),
    (r"projector\.linear\.", "projector.2."),
]  # fmt: skip


def _official_name(name):
    for pattern, new in _OFFICIAL_NAMES:
        name = re.sub(pattern, new, name)
    name = re.sub(r"<<(\d)>>", lambda m: str(int(m[1]) - 2), name)
    return re.sub(r"<(\d)>", lambda m: str(int(m[1]) - 1), name)


@pytest.fixture
def build_narrow(narrow_cfg):
    """Function: overrides -> narrow detector whose tensors all have random values."""

    def build(*opts):
        model = build_model(narrow_cfg(*opts))
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not name.startswith("pixel_"):
                value.copy_(torch.rand_like(value))
        return model

    return build


@pytest.fixture
def official_state_dict():
    """Function: narrow detector -> its tensors under MMDetection's names."""

    def convert(model):
        renamed = {}
        for name, value in model.state_dict().items():
            if name.startswith("pixel_"):
                continue
            new = _official_name(name)
            renamed[new] = value.clone()
            if new.endswith("running_var"):  # frozen layers do not have it, MMDetection's do
                counter = new.replace("running_var", "num_batches_tracked")
                renamed[counter] = torch.tensor(7)
        return renamed

    return convert


@pytest.fixture
def load():
    """Function: (model, path, checkpointer options) -> what the checkpointer's `load` returns."""

    def load(model, path, **kwargs):
        return ContrastMaskCheckpointer(model, **kwargs).load(str(path))

    return load
