import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from contrastmask import add_contrastmask_config
from contrastmask.modeling import roi_heads
from contrastmask.modeling.cam import resize_map
from contrastmask.modeling.contrastive_head import Projector
from contrastmask.modeling.frozen_parts import freeze_parts


def total(losses):
    return sum(losses.values())


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters()}


def test_losses_train_every_parameter(heads_cfg, build_heads, run_heads):
    heads = build_heads(heads_cfg)
    losses, _ = run_heads(heads)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_contrastive"}
    total(losses).backward()
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


def test_masks_of_novel_instances_change_nothing(heads_cfg, build_heads, make_batch, run_heads):
    results = []
    for change in (False, True):
        features, proposals, targets = make_batch()
        if change:
            for x in targets:
                x.gt_masks.tensor[~x.gt_has_mask] ^= True
        heads = build_heads(heads_cfg)
        torch.manual_seed(3)
        losses, _ = run_heads(heads, (features, proposals, targets))
        total(losses).backward()
        results.append((losses, gradients(heads)))
    (first, first_grads), (second, second_grads) = results
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert all(torch.equal(first_grads[k], second_grads[k]) for k in first_grads)


def test_masks_of_base_instances_do_matter(heads_cfg, build_heads, make_batch, run_heads):
    losses = []
    for change in (False, True):
        batch = make_batch()
        if change:
            for x in batch[2]:
                x.gt_masks.tensor[x.gt_has_mask] ^= True
        heads = build_heads(heads_cfg)
        torch.manual_seed(3)
        losses.append(run_heads(heads, batch)[0])
    assert losses[0]["loss_mask"] != losses[1]["loss_mask"]
    assert losses[0]["loss_contrastive"] != losses[1]["loss_contrastive"]
    assert losses[0]["loss_cls"] == losses[1]["loss_cls"]


DEGENERATE = {
    "no proposal matches": dict(num_boxes=4, keep_proposals=True, drop_gt=True),
    "no ground truth": dict(num_boxes=0),
    "no masks": dict(num_boxes=4, has_mask=False),
    "empty masks": dict(num_boxes=4, has_mask=True, fill=False),
    "full masks": dict(num_boxes=4, has_mask=True, fill=True),
    "one image without ground truth": dict(num_boxes=4, empty_first=True),
    "no proposals at all": dict(num_boxes=0, no_proposals=True),
    "ground truth only": dict(num_boxes=4, no_proposals=True),
    "constant features": dict(num_boxes=4, constant=True),
    "zero-width and outside boxes": dict(num_boxes=4, odd_boxes=True),
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
        num_boxes=params["num_boxes"], has_mask=params.get("has_mask")
    )
    if params.get("drop_gt"):
        heads_cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = False
        heads_cfg.MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY = False
        for x in proposals:
            x.proposal_boxes = Boxes(torch.tensor([[90.0, 90.0, 95.0, 95.0]]).repeat(len(x), 1))
    if "fill" in params:
        for x in targets:
            x.gt_masks.tensor[:] = params["fill"]
    if params.get("empty_first"):
        targets[0] = targets[0][torch.zeros(len(targets[0]), dtype=torch.bool)]
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
    total(losses).backward()
    for name, grad in gradients(heads).items():
        assert grad is not None and torch.isfinite(grad).all(), name


def test_mask_loss_uses_ground_truth_boxes_of_base_instances(
    heads_cfg, build_heads, make_batch, run_heads
):
    heads_cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 1.0  # so that no positive is sampled away
    _, storage = run_heads(build_heads(heads_cfg))
    # 2 images with 2 base instances each; the moved boxes are positive, too, but are proposals.
    assert storage.latest()["mask_head/num_rois"][0] == 4
    positives = storage.latest()["contrastive/num_rois"][0]
    heads_cfg.MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY = False
    _, storage = run_heads(build_heads(heads_cfg))
    assert 4 < storage.latest()["mask_head/num_rois"][0] < positives


def test_box_supervision(heads_cfg, build_heads, make_batch, run_heads):
    """It learns from boxes without a mask, not from their masks; other losses stay as they are."""
    heads_cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 1.0
    # Colours differ by up to 1 in the made-up images, before they are scaled by PIXEL_STD.
    heads_cfg.MODEL.PIXEL_STD = [255.0, 255.0, 255.0]
    heads_cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.MAX_COLOR_DISTANCE = 100.0

    def run(weight, batch):
        heads_cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT = weight
        heads = build_heads(heads_cfg)
        torch.manual_seed(3)
        return heads, *run_heads(heads, batch, iteration=100)

    changed = make_batch()
    for x in changed[2]:
        x.gt_masks.tensor[~x.gt_has_mask] ^= True
    _, without, _ = run(0.0, make_batch())
    heads, losses, storage = run(2.0, make_batch())
    _, of_changed, _ = run(2.0, changed)
    assert losses["loss_box_supervision"] > 0
    assert of_changed == losses
    for name in without:
        assert torch.allclose(losses[name], without[name], rtol=1e-5), name
    assert storage.latest()["mask_head/num_rois"][0] == 4

    losses["loss_box_supervision"].backward()
    trained = {n for n, g in gradients(heads).items() if g is not None and g.abs().sum() > 0}
    assert "mask_head.predictor.weight" in trained and "mask_head.fuse.weight" in trained
    assert not any(name.startswith(("box_predictor", "box_head.reg")) for name in trained)

    _, losses, _ = run(2.0, make_batch(has_mask=True))
    assert losses["loss_box_supervision"] == 0


def test_ground_truth_boxes_are_known_by_origin_not_by_value(heads_cfg, build_heads, make_batch):
    _, proposals, targets = make_batch(num_images=1)
    proposals[0].proposal_boxes.tensor[:4] = targets[
        0
    ].gt_boxes.tensor  # proposals that hit exactly
    heads_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 1000
    heads_cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 1.0
    heads = build_heads(heads_cfg)
    with EventStorage():
        (sampled,) = heads.label_and_sample_proposals(proposals, targets)
    assert sampled.is_gt_box.sum() == 4
    assert torch.equal(
        sampled.proposal_boxes.tensor[sampled.is_gt_box].sum(),
        targets[0].gt_boxes.tensor.sum(),
    )


def test_scalars_of_a_training_step(heads_cfg, build_heads, run_heads):
    _, storage = run_heads(build_heads(heads_cfg), iteration=25)
    scalars = {k: v for k, (v, _) in storage.latest().items()}
    assert scalars["contrastive/ramp"] == 0.5
    assert 0 < scalars["contrastive/num_kept"] <= scalars["contrastive/num_rois"]
    for name in ("easy_positive", "easy_negative", "hard_positive", "hard_negative"):
        assert scalars[f"contrastive/num_{name}"] > 0
    for name in ("foreground_easy", "foreground_hard", "background_easy", "background_hard"):
        assert scalars[f"contrastive/{name}"] > 0
    for name in ("accuracy", "false_positive", "false_negative"):
        assert 0 <= scalars[f"mask_head/{name}"] <= 1


def test_ramp_scales_the_loss(heads_cfg, build_heads, run_heads):
    losses = []
    for iteration in (0, 119):
        heads = build_heads(heads_cfg)
        torch.manual_seed(3)
        losses.append(run_heads(heads, iteration=iteration)[0]["loss_contrastive"])
    torch.testing.assert_close(losses[0] * 4, losses[1])


def test_training_images(heads_cfg, build_heads, make_batch):
    heads_cfg.VIS_PERIOD = 2
    heads = build_heads(heads_cfg)
    heads.train()
    for iteration, expected in ((1, 0), (2, 3)):
        with EventStorage(iteration) as storage:
            heads(None, *make_batch())
        names = [name for name, _, _ in storage._vis_data]
        assert len(names) == expected
    assert names == [
        "contrastmask/cam",
        "contrastmask/sampled_keys",
        "contrastmask/predicted_masks",
    ]


@pytest.mark.parametrize("sizes", [(7, 14, 28), (5, 8, 12), (7, 14, 14)])
@pytest.mark.parametrize("masks", ["bitmask", "polygon"])
def test_sizes_follow_the_config(heads_cfg, build_heads, make_batch, run_heads, sizes, masks):
    box_size, mask_size, contrastive_size = sizes
    heads_cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = box_size
    heads_cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = mask_size
    heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.POOLER_RESOLUTION = contrastive_size
    heads = build_heads(heads_cfg)
    losses, _ = run_heads(heads, make_batch(masks=masks))
    assert torch.isfinite(total(losses))
    features, proposals, _ = make_batch()
    with torch.no_grad():
        instances, _ = heads.eval()(None, features, proposals)
    masks = torch.cat([x.pred_masks for x in instances])
    assert len(masks) > 0 and masks.shape[1:] == (1, 2 * mask_size, 2 * mask_size)


VARIANTS = {
    "Mask R-CNN": dict(CAM_ON=False, ENABLED=False),
    "with CAM": dict(CAM_ON=True, ENABLED=False),
    "no contrastive loss": dict(CAM_ON=True, ENABLED=True, LOSS_WEIGHT=0.0),
    "no CAM in the mask head": dict(CAM_ON=False, ENABLED=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(heads_cfg, build_heads, make_batch, run_heads, variant):
    params = dict(VARIANTS[variant])
    heads_cfg.MODEL.ROI_MASK_HEAD.CAM_ON = params.pop("CAM_ON")
    for key, value in params.items():
        heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD[key] = value
    heads = build_heads(heads_cfg)
    losses, _ = run_heads(heads)
    total(losses).backward()
    assert all(g is not None and g.abs().sum() > 0 for g in gradients(heads).values())
    features, proposals, _ = make_batch()
    with torch.no_grad():
        instances, _ = heads.eval()(None, features, proposals)
    assert instances[0].has("pred_masks")


def detect(heads, features, proposals):
    heads.eval()
    with torch.no_grad():
        return heads(None, features, copy.deepcopy(proposals))[0]


def test_cams_of_detections_come_from_their_proposals(heads_cfg, build_heads, make_batch):
    heads_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    heads_cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    heads_cfg.TEST.DETECTIONS_PER_IMAGE = -1
    heads = build_heads(heads_cfg)
    features, proposals, _ = make_batch(num_images=2)
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
    heads_cfg, build_heads, make_batch, monkeypatch
):
    """A proposal with a NaN or infinite score or box is dropped; each CAM stays with its own."""
    heads_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    heads_cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    heads_cfg.TEST.DETECTIONS_PER_IMAGE = -1
    heads = build_heads(heads_cfg)
    features, proposals, _ = make_batch(num_images=2)
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


def test_chunks_change_nothing(heads_cfg, build_heads, make_batch):
    features, proposals, _ = make_batch()
    results = []
    for chunk in (1000, 7):
        heads_cfg.MODEL.ROI_MASK_HEAD.TEST_ROIS_PER_CHUNK = chunk
        results.append(detect(build_heads(heads_cfg), features, proposals))
    for a, b in zip(*results):
        assert len(a) > 7
        torch.testing.assert_close(a.pred_masks, b.pred_masks)


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


class Spy:
    """What a function was called with, and what it returned, in the order of the calls."""

    def __init__(self, monkeypatch, owner, name):
        self.calls, self.results = [], []
        function = getattr(owner, name)

        def call(*args, **kwargs):
            self.calls.append(args)
            self.results.append(function(*args, **kwargs))
            return self.results[-1]

        monkeypatch.setattr(owner, name, call)


def normalised(cam):
    low, high = cam.amin(dim=(-2, -1), keepdim=True), cam.amax(dim=(-2, -1), keepdim=True)
    return (cam - low) / (high - low)


def test_cams_and_loss_of_a_training_step(heads_cfg, build_heads, run_heads, monkeypatch):
    """Each positive RoI's CAM is that of its ground truth's class, resized 7 -> 14 -> 28."""
    heads = build_heads(heads_cfg)
    contrast = Spy(monkeypatch, heads.contrastive_head, "contrast")
    mask_head = Spy(monkeypatch, heads.mask_head, "forward")
    sample = Spy(monkeypatch, heads, "label_and_sample_proposals")
    box_features = Spy(monkeypatch, heads, "_box_features")
    iteration = 35  # of 120: step 3 of 12, where the ramp is at 0.75
    losses, storage = run_heads(heads, iteration=iteration)

    (proposals,) = sample.results
    classes, is_gt_box, has_mask = (
        cat([x.get(name) for x in proposals]) for name in ("gt_classes", "is_gt_box", "gt_has_mask")
    )
    positive = classes < heads.num_classes
    weights = heads.box_predictor.cls_score.weight[classes[positive]]
    class_map = box_features.results[0].class_map[positive]
    cam = torch.einsum("rchw,rc->rhw", class_map, weights)[:, None]
    assert len(classes[positive].unique()) > 1
    options = {"mode": "bilinear", "align_corners": False}
    cam14 = F.interpolate(cam, size=(14, 14), **options)
    cam28 = F.interpolate(cam14, size=(28, 28), **options)
    ((_, cam_of_mask_head, _),) = mask_head.calls
    supervised = (is_gt_box & has_mask)[positive]
    assert 1 < supervised.sum() < len(cam)
    torch.testing.assert_close(cam_of_mask_head, normalised(cam14[supervised]))
    ((_, _, has_mask_of_rois, cam_of_contrast),) = contrast.calls
    assert torch.equal(has_mask_of_rois, has_mask[positive])
    torch.testing.assert_close(cam_of_contrast, normalised(cam28)[:, 0].detach())

    terms, _, _ = contrast.results[0]
    factor = heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.LOSS_WEIGHT * 0.75
    assert storage.latest()["contrastive/ramp"][0] == 0.75
    torch.testing.assert_close(losses["loss_contrastive"], factor * sum(terms))
    assert factor * sum(terms) > 0


def test_cams_at_test_time_are_normalised(heads_cfg, build_heads, make_batch, monkeypatch):
    heads = build_heads(heads_cfg)
    mask_head = Spy(monkeypatch, heads.mask_head, "forward")
    features, proposals, _ = make_batch()
    instances = detect(heads, features, proposals)
    cam = cat([x.pred_cams for x in instances])[:, None]
    assert len(cam) > 1
    expected = F.interpolate(cam, size=(14, 14), mode="bilinear", align_corners=False)
    torch.testing.assert_close(cat([x[1] for x in mask_head.calls]), normalised(expected))


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
    total(losses).backward()


def test_no_detections(heads_cfg, build_heads, make_batch):
    heads_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 2.0
    heads = build_heads(heads_cfg)
    features, proposals, _ = make_batch()
    for x in detect(heads, features, proposals):
        assert x.pred_masks.shape == (0, 1, 28, 28) and x.pred_cams.shape == (0, 7, 7)


def test_inference_runs_no_projector_and_keeps_no_graph(
    heads_cfg, build_heads, make_batch, run_heads, monkeypatch
):
    heads = build_heads(heads_cfg)
    calls = []
    projector = heads.contrastive_head.projector
    for module in projector.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *args: calls.append("projector"))
    monkeypatch.setattr(
        "contrastmask.modeling.contrastive_head.build_pixel_sets",
        lambda *args, **kwargs: calls.append("pixel sets"),
    )
    features, proposals, _ = make_batch()
    instances = detect(heads, features, proposals)
    assert len(instances[0]) > 0 and not calls
    assert not instances[0].pred_masks.requires_grad
    monkeypatch.undo()
    run_heads(heads)
    assert calls  # the hooks do count


def test_targets_of_detectron2s_own_mapper(heads_cfg, build_heads, make_batch, run_heads):
    """Without `gt_has_mask` every instance supervises masks."""
    heads_cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 1.0
    features, proposals, targets = make_batch(has_mask=True)
    expected, _ = run_heads(build_heads(heads_cfg), make_batch(has_mask=True))
    for x in targets:
        x.remove("gt_has_mask")
    losses, storage = run_heads(build_heads(heads_cfg), (features, proposals, targets))
    assert storage.latest()["mask_head/num_rois"][0] == 8
    assert torch.isfinite(total(losses))
    torch.testing.assert_close(losses["loss_mask"], expected["loss_mask"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_close(heads_cfg, build_heads, run_heads, dtype):
    results = []
    for enabled in (False, True):
        heads = build_heads(heads_cfg)
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            losses, _ = run_heads(heads)
        assert all(x.dtype == torch.float32 for x in losses.values())
        total(losses).backward()
        assert all(torch.isfinite(g).all() for g in gradients(heads).values())
        results.append(losses)
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=0.05, atol=0.01)


@pytest.mark.parametrize("max_rois", [1, 6, 100])
def test_cap_of_the_rois_in_the_loss(heads_cfg, build_heads, run_heads, max_rois):
    expected, storage = run_heads(build_heads(heads_cfg))
    num_all, num_supervised = (
        storage.latest()[f"{x}/num_rois"][0] for x in ("contrastive", "mask_head")
    )
    assert 1 < num_supervised < 6 < num_all < 100
    heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.MAX_ROIS = max_rois
    losses, storage = run_heads(build_heads(heads_cfg))
    assert storage.latest()["mask_head/num_rois"][0] == num_supervised
    number = storage.latest()["contrastive/num_rois"][0]
    assert number == min(max(max_rois, num_supervised), num_all)
    torch.testing.assert_close(losses["loss_mask"], expected["loss_mask"])
    assert torch.isfinite(total(losses))


def test_the_cap_chooses_at_random(heads_cfg, build_heads, make_batch, run_heads, monkeypatch):
    heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.MAX_ROIS = 6
    heads_cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 0.5
    heads_cfg.MODEL.ROI_HEADS.INCLUDE_GT_BOXES = True
    heads = build_heads(heads_cfg)
    select = Spy(monkeypatch, roi_heads, "select_positive_rois")
    sample = heads.label_and_sample_proposals
    batch = make_batch()
    torch.manual_seed(0)
    with EventStorage():
        sampled = sample(batch[1], batch[2])
    monkeypatch.setattr(heads, "label_and_sample_proposals", lambda *args: sampled)
    for seed in range(5):
        torch.manual_seed(seed)
        run_heads(heads, batch)
    chosen = [x.index.tolist() for x in select.results]
    assert all(len(x) == 6 and x == sorted(set(x)) for x in chosen)
    assert len({tuple(x) for x in chosen}) > 1
    # Those of the mask loss are always there.
    supervised = [x.index[x.supervised].tolist() for x in select.results]
    assert len(supervised[0]) == 4 and all(x == supervised[0] for x in supervised)


def test_no_cams_in_training_where_nothing_uses_them(
    heads_cfg, build_heads, run_heads, monkeypatch
):
    calls = []
    monkeypatch.setattr(roi_heads, "resize_map", lambda *args: calls.append(1) or resize_map(*args))
    run_heads(build_heads(heads_cfg))
    assert calls
    calls.clear()
    heads_cfg.MODEL.ROI_MASK_HEAD.CAM_ON = False
    heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.ENABLED = False
    heads_cfg.VIS_PERIOD = 1
    losses, _ = run_heads(build_heads(heads_cfg))
    assert torch.isfinite(total(losses)) and not calls


@pytest.mark.slow
def test_500_steps_in_bfloat16_stay_finite(heads_cfg, build_heads, make_batch, run_heads):
    heads, batch = build_heads(heads_cfg), make_batch()
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3)
    totals = []
    for step in range(500):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses, _ = run_heads(heads, batch, step % heads_cfg.SOLVER.MAX_ITER)
        optimizer.zero_grad()
        total(losses).backward()
        assert all(torch.isfinite(g).all() for g in gradients(heads).values()), step
        optimizer.step()
        totals.append(total(losses).item())
    assert torch.tensor(totals).isfinite().all()
    assert sum(totals[-50:]) < 0.8 * sum(totals[:50])


BAD_CONFIGS = {
    "LOSS_FORM": ("MODEL.ROI_CONTRASTIVE_HEAD.LOSS_FORM", "thesis"),
    "SAMPLE_FRACTION": ("MODEL.ROI_CONTRASTIVE_HEAD.SAMPLE_FRACTION", 0.0),
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
    "PROPOSAL_APPEND_GT": ("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False),
    "BOX_SUPERVISION.LOSS_WEIGHT": ("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT", -1.0),
    "BOX_SUPERVISION.WARMUP": ("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.WARMUP", 1.5),
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
def test_synchronised_norms_are_for_one_process(heads_cfg, build_heads, monkeypatch, key, norm):
    """With several, those without RoIs would let the others wait."""
    heads_cfg.merge_from_list([f"MODEL.{key}", norm])
    build_heads(heads_cfg)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=f"MODEL.{key}.*BN or GN"):
        build_heads(heads_cfg)


def test_projector_without_convolutions():
    assert Projector(4, 6, 0, "BN")(torch.randn(2, 4, 3, 3)).shape == (2, 3, 3, 6)


def test_initialisation(build_heads):
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
