"""The RoI heads as a whole: what which loss trains, detections, degenerate batches, configs."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import Boxes, Instances

from contrastmask import add_contrastmask_config
from contrastmask.modeling import ContrastMaskROIHeads, freeze_parts


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters()}


def test_losses_train_every_parameter(heads_cfg, build_heads, run_heads):
    heads = build_heads(heads_cfg)
    losses, _ = run_heads(heads)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_contrastive"}
    sum(losses.values()).backward()
    for name, grad in gradients(heads).items():
        assert grad is not None and torch.isfinite(grad).all(), name
        assert grad.abs().sum() > 0, name


def test_which_loss_trains_what(heads_cfg, build_heads, make_batch, run_heads):
    """Encoder: both losses; projector: contrastive loss only; fusion and box branch: mask loss."""
    features, proposals, targets = make_batch()
    features = {k: v.requires_grad_() for k, v in features.items()}
    heads = build_heads(heads_cfg)
    losses, _ = run_heads(heads, (features, proposals, targets))

    def trained_by(name):
        heads.zero_grad(set_to_none=True)
        losses[name].backward(retain_graph=True)
        return {n for n, g in gradients(heads).items() if g is not None and g.abs().sum() > 0}

    by_contrastive, by_mask = trained_by("loss_contrastive"), trained_by("loss_mask")
    assert all(n.startswith("contrastive_head.") for n in by_contrastive)
    assert any(n.startswith("contrastive_head.projector.") for n in by_contrastive)
    assert any(n.startswith("contrastive_head.encoder.") for n in by_contrastive & by_mask)
    assert not any(n.startswith("contrastive_head.projector.") for n in by_mask)
    assert "mask_head.fuse.weight" in by_mask
    assert "box_head.cls_branch.conv1.weight" in by_mask
    assert not any(n.startswith("box_head.reg_branch") for n in by_mask)
    assert not any(n.startswith("box_predictor") for n in by_mask)

    grad = torch.autograd.grad(losses["loss_contrastive"], features["p2"], allow_unused=True)
    assert grad[0] is None  # the contrastive head's features are detached


DEGENERATE = {
    "no proposal matches": dict(drop_gt=True),
    "no ground truth": dict(num_boxes=(0,)),
    "no masks": dict(has_mask=False),
    "empty masks": dict(has_mask=True, fill=False),
    "full masks": dict(has_mask=True, fill=True),
    "first image without ground truth": dict(num_boxes=(0, 4)),
    "second image without ground truth": dict(num_boxes=(4, 0)),
    "no proposals at all": dict(num_boxes=(0,), no_proposals=True),
    "ground truth only": dict(no_proposals=True),
    "constant features": dict(constant=True),
    "zero-width and outside boxes": dict(odd_boxes=True),
}


# Box supervision without ground-truth boxes is refused, see BAD_CONFIGS.
@pytest.mark.parametrize(
    "case, box_weight",
    [(x, w) for x in DEGENERATE for w in (0.0, 1.0) if not (w and "drop_gt" in DEGENERATE[x])],
)
@pytest.mark.parametrize("loss_weight", [0.1, 0.0])
def test_degenerate_batches(
    heads_cfg, build_heads, make_batch, run_heads, case, loss_weight, box_weight
):
    params = dict(DEGENERATE[case])
    features, proposals, targets = make_batch(
        num_boxes=params.get("num_boxes", (5, 3)), has_mask=params.get("has_mask")
    )
    if params.get("drop_gt"):
        heads_cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = False
        heads_cfg.MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY = False
        for x in proposals:
            x.proposal_boxes = Boxes(torch.tensor([[90.0, 90.0, 95.0, 95.0]]).repeat(len(x), 1))
    if "fill" in params:
        for x in targets:
            x.gt_masks.tensor[:] = params["fill"]
    if params.get("no_proposals"):
        proposals = [x[torch.zeros(len(x), dtype=torch.bool)] for x in proposals]
    if params.get("constant"):
        features = {k: torch.ones_like(v) for k, v in features.items()}
    if params.get("odd_boxes"):
        for x in proposals:
            x.proposal_boxes.tensor[0] = torch.tensor([10.0, 10.0, 10.0, 40.0])
            x.proposal_boxes.tensor[1] = torch.tensor([-50.0, -50.0, -20.0, -20.0])
        for x in targets:
            x.gt_boxes.tensor[0] = torch.tensor([95.0, 95.0, 200.0, 200.0])
    heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.LOSS_WEIGHT = loss_weight
    heads_cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT = box_weight
    heads = build_heads(heads_cfg)
    losses, _ = run_heads(heads, (features, proposals, targets))
    assert ("loss_contrastive" in losses) == (loss_weight > 0)
    assert ("loss_box_supervision" in losses) == (box_weight > 0)
    for name, loss in losses.items():
        assert torch.isfinite(loss), name
    sum(losses.values()).backward()
    for name, grad in gradients(heads).items():
        assert grad is not None and torch.isfinite(grad).all(), name


@pytest.mark.parametrize("sizes", [(7, 14, 28), (5, 8, 12), (7, 14, 14)])
@pytest.mark.parametrize("masks", ["bitmask", "polygon"])
def test_sizes_follow_the_config(
    heads_cfg, build_heads, make_batch, run_heads, detect, sizes, masks
):
    box_size, mask_size, contrastive_size = sizes
    heads_cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = box_size
    heads_cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = mask_size
    heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.POOLER_RESOLUTION = contrastive_size
    heads = build_heads(heads_cfg)
    losses, _ = run_heads(heads, make_batch(masks=masks))
    assert torch.isfinite(sum(losses.values()))
    features, proposals, _ = make_batch()
    instances = detect(heads, features, proposals)
    masks = torch.cat([x.pred_masks for x in instances])
    assert len(masks) > 0 and masks.shape[1:] == (1, 2 * mask_size, 2 * mask_size)


VARIANTS = {
    "Mask R-CNN": dict(CAM_ON=False, ENABLED=False),
    "with CAM": dict(CAM_ON=True, ENABLED=False),
    "no contrastive loss": dict(CAM_ON=True, ENABLED=True, LOSS_WEIGHT=0.0),
    "no CAM in the mask head": dict(CAM_ON=False, ENABLED=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(heads_cfg, build_heads, make_batch, run_heads, detect, variant):
    params = dict(VARIANTS[variant])
    heads_cfg.MODEL.ROI_MASK_HEAD.CAM_ON = params.pop("CAM_ON")
    for key, value in params.items():
        heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD[key] = value
    heads = build_heads(heads_cfg)
    losses, _ = run_heads(heads)
    sum(losses.values()).backward()
    assert all(g is not None and g.abs().sum() > 0 for g in gradients(heads).values())
    features, proposals, _ = make_batch()
    assert detect(heads, features, proposals)[0].has("pred_masks")


def test_cams_of_detections_come_from_their_proposals(heads_cfg, build_heads, make_batch, detect):
    heads_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    heads_cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    heads_cfg.TEST.DETECTIONS_PER_IMAGE = -1
    heads = build_heads(heads_cfg)
    features, proposals, _ = make_batch()
    instances = detect(heads, features, proposals)
    with torch.no_grad():
        pooled = heads.box_pooler(list(features.values()), [x.proposal_boxes for x in proposals])
        maps = heads.box_head(pooled).class_map.split([len(x) for x in proposals])
        weights = heads.box_predictor.cls_score.weight[:-1]
    for detections, class_map in zip(instances, maps):
        every = torch.einsum("rchw,kc->rkhw", class_map, weights).flatten(0, 1)
        assert len(detections) == len(every)
        distance = (detections.pred_cams[:, None] - every).flatten(2).norm(dim=2)
        assert distance.min(dim=1).values.max() < 1e-4
        # Same class, and every proposal used once for every class.
        assert torch.equal(distance.argmin(dim=1) % 5, detections.pred_classes)
        assert len(distance.argmin(dim=1).unique()) == len(every)


def test_non_finite_predictions_leave_other_detections_alone(
    heads_cfg, build_heads, make_batch, detect, monkeypatch
):
    """A proposal with a NaN or infinite score or box is dropped; each CAM stays with its own."""
    heads_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    heads_cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    heads_cfg.TEST.DETECTIONS_PER_IMAGE = -1
    heads = build_heads(heads_cfg)
    features, proposals, _ = make_batch()
    broken = {(0, 0): "scores", (0, 5): "deltas", (1, 3): "scores"}
    first_of_image = [0, len(proposals[0])]
    forward = heads.box_predictor.forward

    def forward_with_broken_rows(x):
        scores, deltas = forward(x)
        for (image, row), what in broken.items():
            value = torch.inf if what == "deltas" else torch.nan
            (scores if what == "scores" else deltas)[first_of_image[image] + row, 1] = value
        return scores, deltas

    undisturbed = detect(heads, features, proposals)
    monkeypatch.setattr(heads.box_predictor, "forward", forward_with_broken_rows)
    for image, (expected, found) in enumerate(zip(undisturbed, detect(heads, features, proposals))):
        num_broken = sum(1 for i, _ in broken if i == image)
        assert len(found) == len(expected) - 5 * num_broken  # one detection for each class
        # The same detection, found by its box, has the same CAM.
        difference = found.pred_boxes.tensor[:, None] - expected.pred_boxes.tensor
        distance, match = difference.abs().amax(dim=2).min(dim=1)
        assert distance.max() < 1e-3 and len(match.unique()) == len(found)
        torch.testing.assert_close(found.pred_cams, expected.pred_cams[match])
        torch.testing.assert_close(found.pred_masks, expected.pred_masks[match])


def test_given_boxes(heads_cfg, build_heads, make_batch):
    heads = build_heads(heads_cfg).eval()
    features, proposals, _ = make_batch()
    instances = []
    for x in proposals:
        given = Instances(x.image_size)
        given.pred_boxes = x.proposal_boxes
        given.pred_classes = torch.arange(len(x)) % 5
        instances.append(given)
    with torch.no_grad():
        results = heads.forward_with_given_boxes(features, instances)
    assert all(x.pred_masks.shape == (len(x), 1, 28, 28) for x in results)
    # The CAM of the given class, from the features in the given box.
    classes = cat([x.pred_classes for x in results])
    with torch.no_grad():
        pooled = heads.box_pooler(list(features.values()), [x.pred_boxes for x in results])
        weights = heads.box_predictor.cls_score.weight[classes]
        cams = torch.einsum("rchw,rc->rhw", heads.box_head(pooled).class_map, weights)
    torch.testing.assert_close(cat([x.pred_cams for x in results]), cams)
    # CAMs that come with the boxes are used instead.
    other = [Instances(x.image_size, **x.get_fields()) for x in results]
    for x in other:
        x.pred_cams = x.pred_cams.flip(1)
    with torch.no_grad():
        other = heads.forward_with_given_boxes(features, other)
    difference = cat([x.pred_masks for x in other]) - cat([x.pred_masks for x in results])
    assert difference.abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_features_do_not_move_boxes(heads_cfg, build_heads, dtype):
    """Neither type can tell apart whole numbers above some size: bfloat16 above 256."""
    heads = build_heads(heads_cfg).eval()
    image = Instances((2400, 2400))
    image.pred_boxes = Boxes([[2101.0, 2105.0, 2123.0, 2127.0]])
    image.pred_classes = torch.zeros(1, dtype=torch.int64)
    # Whole numbers that both types hold, so that only boxes could be rounded.
    features = {
        name: torch.randint(-8, 8, (1, 16, 2400 // s, 2400 // s)).float()
        for name, s in (("p2", 4), ("p3", 8))
    }
    with torch.no_grad():
        (expected,) = heads.forward_with_given_boxes(features, [copy.deepcopy(image)])
        low = {k: x.to(dtype) for k, x in features.items()}
        (found,) = heads.forward_with_given_boxes(low, [image])
    torch.testing.assert_close(found.pred_cams, expected.pred_cams)
    torch.testing.assert_close(found.pred_masks, expected.pred_masks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_features_in_training_and_detection(
    heads_cfg, build_heads, make_batch, run_heads, detect, dtype
):
    features, proposals, targets = make_batch()
    features = {k: x.round() for k, x in features.items()}  # both types hold small whole numbers
    low = {k: x.to(dtype) for k, x in features.items()}
    heads = build_heads(heads_cfg)
    losses = []
    for maps in (features, low):
        torch.manual_seed(3)
        losses.append(run_heads(heads, (maps, copy.deepcopy(proposals), targets))[0])
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, msg=name)
    for x, y in zip(detect(heads, features, proposals), detect(heads, low, proposals)):
        torch.testing.assert_close(x.pred_boxes.tensor, y.pred_boxes.tensor)
        torch.testing.assert_close(x.pred_masks, y.pred_masks)


def test_no_detections(heads_cfg, build_heads, make_batch, detect):
    heads_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 2.0
    heads = build_heads(heads_cfg)
    features, proposals, _ = make_batch()
    for x in detect(heads, features, proposals):
        assert x.pred_masks.shape == (0, 1, 28, 28) and x.pred_cams.shape == (0, 7, 7)


@pytest.mark.parametrize("part", ["mask_head", "contrastive_head"])
def test_frozen_parts_without_supervision(heads_cfg, build_heads, make_batch, run_heads, part):
    """A loss that nothing learns from is still a tensor."""
    heads = build_heads(heads_cfg)
    freeze_parts(heads, [part])
    features, proposals, targets = make_batch(has_mask=False)
    for x in proposals:
        x.proposal_boxes.tensor[:] = torch.tensor([0.0, 0.0, 2.0, 2.0])
    targets = [x[:0] for x in targets]
    losses, _ = run_heads(heads, (features, proposals, targets))
    for name in ("loss_mask", "loss_contrastive"):
        assert losses[name].shape == () and losses[name] == 0, name
    sum(losses.values()).backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_close(heads_cfg, build_heads, run_heads, dtype):
    results = []
    for enabled in (False, True):
        heads = build_heads(heads_cfg)
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            losses, _ = run_heads(heads)
        assert all(x.dtype == torch.float32 for x in losses.values())
        sum(losses.values()).backward()
        assert all(torch.isfinite(g).all() for g in gradients(heads).values())
        results.append(losses)
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=0.05, atol=0.01)


@pytest.mark.slow
def test_500_steps_in_bfloat16_stay_finite(heads_cfg, build_heads, make_batch, run_heads):
    heads, batch = build_heads(heads_cfg), make_batch()
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3)
    totals = []
    for step in range(500):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses, _ = run_heads(heads, batch, step % heads_cfg.SOLVER.MAX_ITER)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(torch.isfinite(g).all() for g in gradients(heads).values()), step
        optimizer.step()
        totals.append(sum(losses.values()).item())
    assert torch.tensor(totals).isfinite().all()
    assert sum(totals[-50:]) < 0.8 * sum(totals[:50])


def test_every_key_reaches_the_heads(heads_cfg, build_heads):
    """Values that differ from each other and from the defaults."""
    heads_cfg.merge_from_list(
        [
            *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 5),
            *("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 12),
            *("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 2),
            *("MODEL.ROI_MASK_HEAD.CAM_ON", False),
            *("MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY", False),
            *("MODEL.ROI_MASK_HEAD.TEST_ROIS_PER_CHUNK", 19),
            *("MODEL.ROI_MASK_HEAD.NUM_CONV", 3),
            *("MODEL.ROI_MASK_HEAD.NORM", "FrozenBN"),
            *("MODEL.ROI_MASK_HEAD.LOGIT_INIT_STD", 90.0),
            *("MODEL.ROI_CONTRASTIVE_HEAD.POOLER_RESOLUTION", 20),
            *("MODEL.ROI_CONTRASTIVE_HEAD.POOLER_SAMPLING_RATIO", 3),
            *("MODEL.ROI_CONTRASTIVE_HEAD.POOLER_TYPE", "ROIAlign"),
            *("MODEL.ROI_CONTRASTIVE_HEAD.MAX_ROIS", 21),
            *("MODEL.ROI_HEADS.INCLUDE_GT_BOXES", True),
            *("VIS_PERIOD", 22),
        ]
    )
    heads = build_heads(heads_cfg)
    assert heads.contrastive_pooler.output_size == (20, 20)
    for pooler, ratio, aligned in (
        (heads.contrastive_pooler, 3, False),
        (heads.mask_pooler, 2, True),
    ):
        assert [x.spatial_scale for x in pooler.level_poolers] == [1 / 4, 1 / 8]
        assert {(x.sampling_ratio, x.aligned) for x in pooler.level_poolers} == {(ratio, aligned)}
    assert (heads.cam_on, heads.gt_boxes_only, heads.include_gt_boxes) == (False, False, True)
    assert (heads.test_rois_per_chunk, heads.max_contrastive_rois, heads.vis_period) == (19, 21, 22)
    mask_head = heads.mask_head
    assert [x.out_channels for x in mask_head.convs] == [8, 8, 8]
    assert {type(x.norm).__name__ for x in mask_head.convs} == {"FrozenBatchNorm2d"}
    assert mask_head.predictor.weight.std() > 20


def test_names_of_tensors(heads_cfg, build_heads):
    """They are the names in checkpoints. Nothing else is stored."""
    heads_cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT = 1.0
    layers = [
        "box_head.shared.conv1",
        "box_head.cls_branch.conv1",
        "box_head.reg_branch.conv1",
        "box_head.reg_branch.conv2",
        "box_predictor.cls_score",
        "box_predictor.bbox_pred",
        "mask_head.fuse",
        "mask_head.convs.mask_fcn1",
        "mask_head.deconv",
        "mask_head.predictor",
        "contrastive_head.encoder.conv1",
        "contrastive_head.encoder.conv2",
        "contrastive_head.projector.linear",
    ]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    for k in (1, 2):
        name = f"contrastive_head.projector.convs.conv{k}"
        expected |= {f"{name}.weight", f"{name}.norm.weight", f"{name}.norm.bias"}
        expected |= {
            f"{name}.norm.{x}" for x in ("running_mean", "running_var", "num_batches_tracked")
        }
    assert set(build_heads(heads_cfg).state_dict()) == expected


@pytest.mark.parametrize("num_conv", [0, 1])
def test_widths_without_convolutions(heads_cfg, build_heads, run_heads, num_conv):
    """The mask head takes the encoder's output, whatever makes it."""
    heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.NUM_CONV = num_conv
    heads_cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1 - num_conv
    heads = build_heads(heads_cfg)
    assert heads.mask_head.fuse.in_channels == (10 if num_conv else 16)
    assert heads.mask_head.deconv.in_channels == (16 if num_conv else 8)
    losses, _ = run_heads(heads)
    assert torch.isfinite(sum(losses.values()))


@pytest.mark.parametrize("loss_weight", [0.0, 1.0])
def test_heads_without_masks(heads_cfg, build_heads, make_batch, run_heads, detect, loss_weight):
    """MODEL.MASK_ON False: options of the mask branch play no part."""
    heads_cfg.MODEL.MASK_ON = False
    heads_cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = False
    heads_cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT = loss_weight
    heads = build_heads(heads_cfg)
    features, proposals, targets = make_batch()
    for x in targets:
        x.remove("gt_masks")
    losses, _ = run_heads(heads, (features, proposals, targets))
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    assert not any(
        x.has("pred_masks") or x.has("pred_cams") for x in detect(heads, features, proposals)
    )


BAD_CONFIGS = {
    "LOSS_FORM": ("MODEL.ROI_CONTRASTIVE_HEAD.LOSS_FORM", "thesis"),
    "SAMPLE_FRACTION": ("MODEL.ROI_CONTRASTIVE_HEAD.SAMPLE_FRACTION", 0.0),
    "SAMPLE_FRACTION has": ("MODEL.ROI_CONTRASTIVE_HEAD.SAMPLE_FRACTION", 1.01),
    "CLS_AGNOSTIC_MASK": ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False),
    "MODEL.ROI_BOX_HEAD.NAME is FastRCNNConvFCHead.*ContrastMaskBoxHead": (
        "MODEL.ROI_BOX_HEAD.NAME",
        "FastRCNNConvFCHead",
    ),
    "MODEL.ROI_MASK_HEAD.NAME is MaskRCNNConvUpsampleHead.*ContrastMaskMaskHead": (
        "MODEL.ROI_MASK_HEAD.NAME",
        "MaskRCNNConvUpsampleHead",
    ),
    "TRAIN_ON_PRED_BOXES": ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True),
    "TEST_ROIS_PER_CHUNK": ("MODEL.ROI_MASK_HEAD.TEST_ROIS_PER_CHUNK", 0),
    "RAMP_STEPS": ("MODEL.ROI_CONTRASTIVE_HEAD.RAMP_STEPS", 0),
    "PROPOSAL_APPEND_GT": ("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False),
    "BOX_SUPERVISION.LOSS_WEIGHT": ("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT", -0.01),
    "BOX_SUPERVISION.WARMUP": ("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.WARMUP", 1.01),
    "BOX_SUPERVISION.WARMUP has": ("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.WARMUP", -0.01),
    "INCLUDE_GT_BOXES needs": (
        "MODEL.ROI_HEADS.INCLUDE_GT_BOXES",
        True,
        "MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY",
        False,
        "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT",
        False,
    ),
    "BOX_SUPERVISION needs": (
        "MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY",
        False,
        "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT",
        False,
        "MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT",
        1.0,
    ),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_errors_name_the_key(heads_cfg, build_heads, name):
    heads_cfg.merge_from_list(list(BAD_CONFIGS[name]))
    with pytest.raises(ValueError, match=name):
        build_heads(heads_cfg)


@pytest.mark.parametrize(
    "key",
    ["ROI_MASK_HEAD.NORM", "ROI_CONTRASTIVE_HEAD.NORM", "ROI_CONTRASTIVE_HEAD.PROJECTOR_NORM"],
)
@pytest.mark.parametrize("norm", ["SyncBN", "naiveSyncBN"])
def test_synchronized_norms_are_for_one_process(heads_cfg, build_heads, monkeypatch, key, norm):
    """With several, those without RoIs would let the others wait."""
    heads_cfg.merge_from_list([f"MODEL.{key}", norm])
    build_heads(heads_cfg)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=f"MODEL.{key}.*BN or GN"):
        build_heads(heads_cfg)


def test_initialization(build_heads):
    """Standard deviations measured in the authors' code for 80 classes and 256 channels."""
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NAME = "ContrastMaskROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "ContrastMaskBoxHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 4
    cfg.MODEL.ROI_MASK_HEAD.NAME = "ContrastMaskMaskHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 4
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    heads = build_roi_heads(cfg, {"p2": ShapeSpec(channels=256, stride=4)})
    expected = {
        "box_predictor.cls_score": 0.077,
        "box_predictor.bbox_pred": 0.059,
        "mask_head.fuse": 0.088,
        "mask_head.deconv": 0.044,
        "mask_head.predictor": 1.41,
        "contrastive_head.encoder.conv1": (2 / (256 * 9)) ** 0.5,
    }
    modules = dict(heads.named_modules())
    for name, std in expected.items():
        assert modules[name].weight.std().item() == pytest.approx(std, rel=0.15), name
        assert not modules[name].bias.any()


@pytest.mark.parametrize("num_classes", [1200, 3000])
def test_thousands_of_classes(heads_cfg, build_heads, run_heads, make_batch, detect, num_classes):
    few = build_heads(heads_cfg)
    heads_cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    heads = build_heads(heads_cfg)
    assert isinstance(heads, ContrastMaskROIHeads)

    shapes = {name: p.shape for name, p in heads.named_parameters()}
    grown = {name for name, p in few.named_parameters() if shapes[name] != p.shape}
    assert grown == {
        f"box_predictor.{layer}.{kind}"
        for layer in ("cls_score", "bbox_pred")
        for kind in ("weight", "bias")
    }
    assert heads.box_predictor.cls_score.weight.shape[0] == num_classes + 1

    features, proposals, targets = make_batch()
    for target in targets:  # classes from all over the range
        target.gt_classes = target.gt_classes * (num_classes // 5) + 7
    losses, _ = run_heads(heads, (features, proposals, targets))
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_contrastive"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(loss > 0 for loss in losses.values())
    optimizer = torch.optim.SGD(heads.parameters(), lr=0.01)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in heads.parameters())
    optimizer.step()
    after, _ = run_heads(heads, make_batch())
    assert all(torch.isfinite(loss) for loss in after.values())

    instances = detect(heads, features, proposals)
    assert all(len(x) == len(x.pred_masks) == len(x.pred_cams) for x in instances)
