"""The mask branch: what reaches its heads, its losses, and chunks of RoIs in inference."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import cat
from detectron2.structures import Boxes, Instances
from torch.profiler import ProfilerActivity, profile


@pytest.fixture
def all_positive(heads_cfg):
    """No positive RoI is sampled away: all ground-truth boxes are there."""
    heads_cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 1.0
    return heads_cfg


@pytest.fixture
def box_supervised(all_positive):
    """Colors differ by up to 1 in the synthetic images, before they are scaled by PIXEL_STD."""
    all_positive.MODEL.PIXEL_STD = [255.0, 240.0, 250.0]
    all_positive.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.MAX_COLOR_DISTANCE = 100.0
    all_positive.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT = 2.0
    return all_positive


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters()}


def normalized(cam):
    low, high = cam.amin(dim=(-2, -1), keepdim=True), cam.amax(dim=(-2, -1), keepdim=True)
    return (cam - low) / (high - low)


def resize(maps, size):
    return F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)


def expected_logits(heads, features, boxes, cams):
    """The mask branch in words: X + fuse(Y) + CAM, then the mask head's layers."""
    levels = [features[name] for name in ("p2", "p3")]
    encoded = heads.contrastive_head.encoder(heads.contrastive_pooler(levels, boxes)).flatten(2)
    directions = F.normalize(encoded, dim=1)
    weights = (directions.transpose(1, 2) @ directions).softmax(dim=2)
    enhanced = (encoded @ weights.transpose(1, 2)).unflatten(2, (28, 28))
    head = heads.mask_head
    x = heads.mask_pooler(levels, boxes) + head.fuse(resize(enhanced, 14))
    x = x + normalized(resize(cams, 14))
    return head.predictor(head.deconv(head.convs(x)).relu())


def test_one_function_for_the_logits_of_both_modes(
    box_supervised, build_heads, make_batch, run_heads, detect, spy
):
    """Training and inference against the same few lines."""
    heads = build_heads(box_supervised)
    box_features = spy(heads, "_box_features")
    sample = spy(heads, "label_and_sample_proposals")
    mask_head = spy(heads.mask_head, "forward")
    batch = make_batch()
    run_heads(heads, batch)
    (proposals,) = sample.results
    classes = cat([x.gt_classes for x in proposals])
    weights = heads.box_predictor.cls_score.weight[classes.clamp(max=4)]
    class_map = box_features.results[0].class_map
    cams = torch.einsum("rchw,rc->rhw", class_map, weights)[:, None]
    is_gt_box = cat([x.is_gt_box for x in proposals])
    boxes = [x.proposal_boxes[x.is_gt_box] for x in proposals]
    assert [len(x) for x in boxes] == [5, 3]
    with torch.no_grad():
        expected = expected_logits(heads, batch[0], boxes, cams[is_gt_box])
    torch.testing.assert_close(mask_head.results[0], expected, rtol=1e-4, atol=1e-4)

    mask_head.results.clear()
    instances = detect(heads, batch[0], batch[1])
    cams = cat([x.pred_cams for x in instances])[:, None]
    with torch.no_grad():
        expected = expected_logits(heads, batch[0], [x.pred_boxes for x in instances], cams)
    assert len(instances[0]) != len(instances[1])
    torch.testing.assert_close(cat(mask_head.results), expected, rtol=1e-4, atol=1e-4)
    masks = cat([x.pred_masks for x in instances])
    torch.testing.assert_close(masks, expected.sigmoid(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masks", ["bitmask", "polygon"])
@pytest.mark.parametrize("contrastive_size", [28, 20])
def test_targets_of_both_losses(
    box_supervised, build_heads, make_batch, run_heads, spy, contrastive_size, masks
):
    """Each RoI is compared with the mask of its own ground truth, at the size of each loss."""
    box_supervised.MODEL.ROI_CONTRASTIVE_HEAD.POOLER_RESOLUTION = contrastive_size
    heads = build_heads(box_supervised)
    sample = spy(heads, "label_and_sample_proposals")
    contrast = spy(heads.contrastive_head, "contrast")
    mask_head = spy(heads.mask_head, "forward")
    batch = make_batch(masks=masks)
    losses, storage = run_heads(heads, batch)

    def crops(choose, size):
        return cat(
            [
                t.gt_masks[x.gt_index[choose(x)]].crop_and_resize(
                    x.proposal_boxes.tensor[choose(x)], size
                )
                for x, t in zip(sample.results[0], batch[2])
            ]
        )

    ((_, targets, has_mask, _),) = contrast.calls
    assert torch.equal(targets, crops(lambda x: x.gt_classes < 5, contrastive_size))
    assert 5 < has_mask.sum() < len(has_mask)
    masks = crops(lambda x: x.is_gt_box & x.gt_has_mask, 28)
    assert len(masks) == 5 and 0.3 < masks.float().mean() < 0.8
    is_base = cat([x.gt_has_mask[x.is_gt_box] for x in sample.results[0]])
    logits = mask_head.results[0][is_base, 0]
    expected = F.binary_cross_entropy_with_logits(logits, masks.float())
    torch.testing.assert_close(losses["loss_mask"], expected)
    scalars = {k: v for k, (v, _) in storage.latest().items()}
    predicted = logits > 0
    assert scalars["mask_head/accuracy"] == pytest.approx((predicted == masks).float().mean())
    wrong = predicted & ~masks
    assert scalars["mask_head/false_positive"] == pytest.approx(wrong.sum() / (~masks).sum())
    wrong = ~predicted & masks
    assert scalars["mask_head/false_negative"] == pytest.approx(wrong.sum() / masks.sum())


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
        sum(losses.values()).backward()
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


def test_box_supervision(box_supervised, build_heads, make_batch, run_heads):
    """It learns from boxes without a mask, not from their masks; other losses stay as they are."""

    def run(weight, batch):
        box_supervised.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT = weight
        heads = build_heads(box_supervised)
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
    assert storage.latest()["mask_head/num_rois"][0] == 5

    losses["loss_box_supervision"].backward()
    trained = {n for n, g in gradients(heads).items() if g is not None and g.abs().sum() > 0}
    assert "mask_head.predictor.weight" in trained and "mask_head.fuse.weight" in trained
    assert not any(name.startswith(("box_predictor", "box_head.reg")) for name in trained)

    _, losses, _ = run(2.0, make_batch(has_mask=True))
    assert losses["loss_box_supervision"] == 0


@pytest.mark.parametrize("gt_boxes_only", [True, False])
def test_box_supervision_is_of_ground_truth_boxes(
    box_supervised, build_heads, make_batch, run_heads, spy, gt_boxes_only
):
    """Proposals are no tight boxes: not even where they supervise masks do they take part."""
    box_supervised.MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY = gt_boxes_only
    box_supervised.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 40
    heads = build_heads(box_supervised)
    supervision = spy(heads.box_supervision, "forward")
    features, proposals, targets = make_batch()
    losses, storage = run_heads(heads, (features, proposals, targets), iteration=29)
    assert (storage.latest()["mask_head/num_rois"][0] > 5) != gt_boxes_only
    ((logits, images, boxes, iteration),) = supervision.calls
    assert losses["loss_box_supervision"] == supervision.results[0]
    assert iteration == 29
    assert images.image_sizes == [tuple(x.image_size) for x in targets]
    given = []
    for x, target in zip(boxes, targets):
        novel = target[~target.gt_has_mask]
        assert len(x) == len(novel) > 0
        # As sampled, in any order.
        same = (x.tensor[:, None] == novel.gt_boxes.tensor).all(dim=2)
        assert (same.sum(dim=0) == 1).all() and (same.sum(dim=1) == 1).all()
        given.append(Instances(target.image_size))
        given[-1].pred_boxes = x
        given[-1].pred_classes = novel.gt_classes[same.long().argmax(dim=1)]
    with torch.no_grad():
        heads.eval().forward_with_given_boxes(features, given)
    torch.testing.assert_close(logits.sigmoid(), cat([x.pred_masks for x in given]))


@pytest.mark.parametrize("loss_weight", [0.1, 0.0])
def test_losses_that_nobody_supervises_touch_every_parameter(
    box_supervised, build_heads, make_batch, run_heads, loss_weight
):
    """Else distributed training would wait for a gradient; the values are zero."""
    box_supervised.MODEL.ROI_CONTRASTIVE_HEAD.LOSS_WEIGHT = loss_weight
    heads = build_heads(box_supervised)
    losses, _ = run_heads(heads, make_batch(num_boxes=(0,)))
    names = {"loss_mask", "loss_box_supervision", "loss_contrastive"}
    assert names - set(losses) == (set() if loss_weight else {"loss_contrastive"})
    for name in names & set(losses):
        heads.zero_grad(set_to_none=True)
        assert losses[name] == 0
        losses[name].backward()
        for part in (heads.mask_head, heads.contrastive_head):
            for key, grad in gradients(part).items():
                assert grad is not None and not grad.any(), (name, key)


def test_cams_and_loss_of_a_training_step(heads_cfg, build_heads, make_batch, run_heads, spy):
    """Each positive RoI's CAM is that of its ground truth's class, resized 7 -> 14 -> 28."""
    heads = build_heads(heads_cfg)
    contrast = spy(heads.contrastive_head, "contrast")
    mask_head = spy(heads.mask_head, "forward")
    sample = spy(heads, "label_and_sample_proposals")
    box_features = spy(heads, "_box_features")
    iteration = 35  # of 120: step 3 of 12, where the ramp is at 0.75
    batch = make_batch()
    batch[2][0].gt_masks.tensor[0] = False  # its RoIs are dropped from the loss
    losses, storage = run_heads(heads, batch, iteration)

    (proposals,) = sample.results
    classes, is_gt_box, has_mask = (
        cat([x.get(name) for x in proposals]) for name in ("gt_classes", "is_gt_box", "gt_has_mask")
    )
    positive = classes < heads.num_classes
    weights = heads.box_predictor.cls_score.weight[classes[positive]]
    class_map = box_features.results[0].class_map[positive]
    cam = torch.einsum("rchw,rc->rhw", class_map, weights)[:, None]
    assert len(classes[positive].unique()) > 1
    cam14 = resize(cam, 14)
    cam28 = resize(cam14, 28)
    ((_, cam_of_mask_head, _),) = mask_head.calls
    supervised = (is_gt_box & has_mask)[positive]
    assert 1 < supervised.sum() < len(cam)
    torch.testing.assert_close(cam_of_mask_head, normalized(cam14[supervised]))
    ((_, _, has_mask_of_rois, cam_of_contrast),) = contrast.calls
    assert torch.equal(has_mask_of_rois, has_mask[positive])
    torch.testing.assert_close(cam_of_contrast, normalized(cam28)[:, 0].detach())

    terms, pixel_sets, sampled = contrast.results[0]
    factor = heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.LOSS_WEIGHT * 0.75
    torch.testing.assert_close(losses["loss_contrastive"], factor * sum(terms))
    assert factor * sum(terms) > 0
    scalars = {k: v for k, (v, _) in storage.latest().items()}
    assert scalars["contrastive/ramp"] == 0.75
    assert scalars["contrastive/num_rois"] == positive.sum()
    assert scalars["contrastive/num_kept"] == pixel_sets.kept.sum() < positive.sum()
    assert scalars["mask_head/num_rois"] == supervised.sum()
    for name, value in terms._asdict().items():
        assert scalars[f"contrastive/{name}"] == pytest.approx(value.item())
    for name, value in sampled._asdict().items():
        assert scalars[f"contrastive/num_{name}"] == value.sum() > 0


@pytest.mark.parametrize("iteration, ramp", [(29, 0.5), (30, 0.75)])
def test_the_ramp_steps_with_the_iteration(heads_cfg, build_heads, run_heads, iteration, ramp):
    _, storage = run_heads(build_heads(heads_cfg), iteration=iteration)
    assert storage.latest()["contrastive/ramp"][0] == ramp


@pytest.mark.parametrize("enabled", [True, False])
def test_training_without_cams_in_the_mask_head(
    heads_cfg, build_heads, make_batch, run_heads, detect, spy, enabled
):
    """The contrastive loss still needs them; without it nothing does, and no images show them."""
    heads_cfg.MODEL.ROI_MASK_HEAD.CAM_ON = False
    heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.ENABLED = enabled
    heads_cfg.VIS_PERIOD = 1
    heads = build_heads(heads_cfg)
    cams = spy(heads, "_cams")
    mask_head = spy(heads.mask_head, "forward")
    losses, storage = run_heads(heads)
    assert torch.isfinite(sum(losses.values()))
    assert len(cams.calls) == int(enabled)
    assert bool(storage._vis_data) == enabled
    features, proposals, _ = make_batch()
    assert detect(heads, features, proposals)[0].has("pred_cams")
    assert len(mask_head.calls) > 1 and all(cam is None for _, cam, _ in mask_head.calls)


def test_chunks_change_nothing(heads_cfg, build_heads, make_batch, detect, spy):
    """Chunks of 11 begin and end within images, and one spans two of them."""
    features, proposals, _ = make_batch()
    results = []
    for chunk in (1000, 11):
        heads_cfg.MODEL.ROI_MASK_HEAD.TEST_ROIS_PER_CHUNK = chunk
        heads = build_heads(heads_cfg)
        mask_head = spy(heads.mask_head, "forward")
        results.append(detect(heads, features, proposals))
        numbers = [len(x) for x, _, _ in mask_head.calls]
        assert max(numbers) <= chunk and set(numbers[:-1]) <= {chunk}
    for a, b in zip(*results):
        assert len(a) > 22 and len(a) % 11
        torch.testing.assert_close(a.pred_masks, b.pred_masks)


def test_inference_runs_no_projector_and_keeps_no_graph(
    heads_cfg, build_heads, make_batch, run_heads, detect, monkeypatch
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


@pytest.mark.parametrize("has_masks", [True, False])
def test_targets_of_detectron2s_own_mapper(
    all_positive, build_heads, make_batch, run_heads, has_masks
):
    """Without `gt_has_mask` every instance supervises masks, if there are masks."""
    features, proposals, targets = make_batch(has_mask=has_masks)
    expected, _ = run_heads(build_heads(all_positive), make_batch(has_mask=has_masks))
    for x in targets:
        x.remove("gt_has_mask")
        if not has_masks:
            x.remove("gt_masks")
    losses, storage = run_heads(build_heads(all_positive), (features, proposals, targets))
    assert storage.latest()["mask_head/num_rois"][0] == (8 if has_masks else 0)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], msg=name)


def peak_memory(heads, features, num_boxes):
    """Bytes that PyTorch has allocated at most while masks of given boxes are predicted."""
    low = torch.rand(num_boxes, 2) * 50
    instances = Instances((96, 128))
    instances.pred_boxes = Boxes(torch.cat([low, low + 30], dim=1))
    instances.pred_classes = torch.zeros(num_boxes, dtype=torch.int64)
    instances.pred_cams = torch.rand(num_boxes, 7, 7)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with torch.no_grad():
            heads.forward_with_given_boxes(features, [instances])
    assert instances.pred_masks.shape == (num_boxes, 1, 28, 28)
    allocated = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak


def test_many_boxes_need_little_more_memory_than_one_chunk(heads_cfg, build_heads, make_batch):
    heads_cfg.MODEL.ROI_MASK_HEAD.TEST_ROIS_PER_CHUNK = 20
    heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.POOLER_RESOLUTION = 14
    heads = build_heads(heads_cfg).eval()
    features, _, _ = make_batch(num_images=1)
    chunk, many = peak_memory(heads, features, 20), peak_memory(heads, features, 400)
    # What is kept for each box: logits, all logits in one tensor, probabilities, CAM.
    per_box = 4 * (3 * 28 * 28 + 7 * 7)
    assert chunk > 2 * 20 * per_box  # the bound below is not met by any implementation
    assert many < chunk + 400 * per_box
    heads.test_rois_per_chunk = 400
    assert peak_memory(heads, features, 400) > 3 * many
