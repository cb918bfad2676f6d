"""Whether a checkpoint fits a model, and the likely cause if it does not."""

# Prefix of names in the model -> the config keys that decide the shapes or the number of layers.
_CAUSES = (
    ("backbone.bottom_up.", "another backbone: see MODEL.RESNETS.DEPTH, NUM_GROUPS, "
     "WIDTH_PER_GROUP, RES2_OUT_CHANNELS and STEM_OUT_CHANNELS"),
    ("backbone.", "another feature pyramid or backbone: see MODEL.FPN.OUT_CHANNELS and "
     "MODEL.RESNETS.RES2_OUT_CHANNELS"),
    ("proposal_generator.", "another number of anchors or channels: see MODEL.ANCHOR_GENERATOR "
     "and MODEL.FPN.OUT_CHANNELS"),
    ("roi_heads.box_head.", "another box head: see MODEL.ROI_BOX_HEAD.CONV_DIM, NUM_CONV and "
     "NORM"),
    ("roi_heads.mask_head.predictor.", "class-specific masks: this model predicts one mask for "
     "all classes, or has another MODEL.ROI_MASK_HEAD.CONV_DIM"),
    ("roi_heads.mask_head.", "another mask head: see MODEL.ROI_MASK_HEAD.CONV_DIM, NUM_CONV, NORM "
     "and MODEL.ROI_CONTRASTIVE_HEAD.ENABLED"),
    ("roi_heads.contrastive_head.", "another contrastive head: see MODEL.ROI_CONTRASTIVE_HEAD"),
)  # fmt: skip


def check_fit(file, incompatible, *, covers, require_all):
    """
    Args:
        file (str): to name in errors.
        incompatible: the lists `missing_keys`, `unexpected_keys` and `incorrect_shapes` of
            fvcore's checkpointer.
        covers (tuple[str]): prefixes of the names that the checkpoint has to fill without rest.
        require_all (bool): whether no tensor of the model may be missing.

    Raises:
        ValueError: naming the first offending tensor and the likely cause.
    """
    if incompatible.incorrect_shapes:
        # The backbone first: other parts take their number of channels from it.
        name, in_checkpoint, in_model = min(
            incompatible.incorrect_shapes, key=lambda x: not x[0].startswith("backbone.bottom_up.")
        )
        others = len(incompatible.incorrect_shapes) - 1
        raise ValueError(
            f"checkpoint {file} does not fit the model: {name} has the shape {in_checkpoint} in "
            f"the checkpoint and {in_model} in the model"
            + (f" ({others} more tensors differ)" if others else "")
            + f". Likely cause: {_cause_of_shape(name, in_checkpoint, in_model)}"
            + _how_to_exclude(name, "To start a part anew", require_all)
        )
    missing = incompatible.missing_keys
    if not require_all:
        missing = [k for k in missing if k.startswith(covers)]
    if missing:
        raise ValueError(
            f"checkpoint {file} does not fit the model: {len(missing)} tensors of the model are "
            f"not in it, the first is {missing[0]}. Likely cause: {_cause(missing[0])}"
            + _how_to_exclude(missing[0], "If it is to keep its initial values", require_all)
        )
    unused = [k for k in incompatible.unexpected_keys if covers and k.startswith(covers)]
    if unused:
        raise ValueError(
            f"checkpoint {file} does not fit the model: {len(unused)} of its tensors have no place "
            f"in the model, the first is {unused[0]}. Likely cause: {_cause(unused[0])}"
        )


def _how_to_exclude(name, purpose, require_all):
    if require_all:  # evaluation or a resumed training, where nothing is excluded
        return ""
    return f". {purpose}, name it in MODEL.WEIGHTS_EXCLUDE, here \"['{_part_of(name)}']\""


def _cause(name):
    return next((c for prefix, c in _CAUSES if name.startswith(prefix)), "another architecture")


def _cause_of_shape(name, in_checkpoint, in_model):
    key = "MODEL.ROI_HEADS.NUM_CLASSES"
    rows = (in_checkpoint[:1] or (0,)) + (in_model[:1] or (0,))
    if name.startswith("roi_heads.box_predictor.cls_score.") and rows[0] != rows[1]:
        return f"{key}: the checkpoint has {rows[0] - 1} classes, the model {rows[1] - 1}"
    if name.startswith("roi_heads.box_predictor.bbox_pred.") and rows[0] != rows[1]:
        return (
            f"{key}: the checkpoint has boxes for {rows[0] // 4} classes, the model {rows[1] // 4}"
        )
    return _cause(name)


def _part_of(name):
    """The module that owns a tensor of a head, or the part of the model."""
    return ".".join(name.split(".")[:2])
