"""The mask loss of boxes without a mask from an averaged mask head's own predictions."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import cat
from detectron2.structures import Boxes, ImageList

from contrastmask.checkpoint import ContrastMaskCheckpointer
from contrastmask.modeling.color_crf import refine_by_color, rgb_to_lab
from contrastmask.modeling.self_training import SelfTraining, claimed_by_others

KEYS = "MODEL.ROI_MASK_HEAD.SELF_TRAINING"


@pytest.fixture
def cfg(heads_cfg):
    """It begins at once, and all ground-truth boxes are there."""
    heads_cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 1.0
    heads_cfg.MODEL.PIXEL_MEAN, heads_cfg.MODEL.PIXEL_STD = [100.0] * 3, [80.0, 70.0, 60.0]
    keys = heads_cfg.MODEL.ROI_MASK_HEAD.SELF_TRAINING
    keys.LOSS_WEIGHT, keys.START, keys.RAMP = 2.0, 0.0, 0.0
    return heads_cfg


def tensors(module):
    return {name: x.clone() for name, x in module.state_dict().items()}


def learn(heads, losses):
    """One step of gradient descent."""
    optimizer = torch.optim.SGD([p for p in heads.parameters() if p.requires_grad], lr=0.001)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()


def test_loss_in_words(cfg, build_heads, make_batch, run_heads, spy):
    """Boxes without a mask are compared with what teacher and colors make of them, others not."""
    heads = build_heads(cfg)
    sample, mask_head = spy(heads, "label_and_sample_proposals"), spy(heads.mask_head, "forward")
    labels = spy(heads.self_training, "labels")
    losses, storage = run_heads(heads, make_batch())
    gt_boxes = [x[x.is_gt_box] for x in sample.results[0]]
    is_novel = ~cat([x.gt_has_mask for x in gt_boxes])
    assert 0 < is_novel.sum() < len(is_novel)
    ((inputs, images, boxes, classes),) = labels.calls
    novel_boxes = [x.proposal_boxes.tensor[~x.gt_has_mask] for x in gt_boxes]
    assert all(torch.equal(x.tensor, y) for x, y in zip(boxes, novel_boxes))
    novel_classes = [x.gt_classes[~x.gt_has_mask] for x in gt_boxes]
    assert torch.equal(classes, cat(novel_classes))
    ((masks, _),) = labels.results
    logits = mask_head.results[0][is_novel, 0]
    expected = 2 * F.binary_cross_entropy_with_logits(logits, masks.float())
    torch.testing.assert_close(losses["loss_self_training"], expected)

    # The teacher begins as a copy, so that its logits are the mask head's.
    crops = torch.stack(
        [crop_by_hand(images.tensor[k], box) for k, x in enumerate(novel_boxes) for box in x]
    )
    crops = crops * torch.tensor([80.0, 70.0, 60.0])[:, None, None] + 100
    lab = rgb_to_lab(crops.flip(1))  # the images are BGR
    in_image = labels_in_image(images, novel_boxes)
    options = {"weight": 4.0, "distance": 0.3, "color_distance": 4.0}
    refined = refine_by_color(logits, lab, in_image, **options) > 0
    per_image = zip(logits.split([len(x) for x in novel_boxes]), novel_boxes, novel_classes)
    refined &= ~torch.cat([claimed_by_others(*x) for x in per_image])
    assert (refined == masks).float().mean() > 0.999
    assert (refined != (logits > 0)).float().mean() > 0.01
    numbers = {k: v for k, (v, _) in storage.latest().items() if k.startswith("self_training/")}
    overlap = [(m & p).sum() / (m | p).sum().clamp(min=1) for m, p in zip(masks, logits > 0)]
    overlap = torch.stack(overlap).mean().item()
    assert numbers == pytest.approx(
        {
            "self_training/num_rois": int(is_novel.sum()),
            "self_training/iou_with_teacher": overlap,
            "self_training/iou_with_mask_head": overlap,
            "self_training/foreground": masks.float().mean().item(),
        }
    )


def crop_by_hand(image, box, size=28, margin=4):
    """(3, 36, 36) mean of bilinear samples, a grid of them in each cell, as RoIAlign takes it."""
    cell = (box[2:] - box[:2]) / size
    num = size + 2 * margin
    per_cell = [int(torch.ceil(x)) for x in (cell * num) / num]
    low = box[:2] - margin * cell
    x, y = (
        low[k] + cell[k] * (torch.arange(num * per_cell[k]) + 0.5) / per_cell[k] for k in (0, 1)
    )
    height, width = image.shape[1:]
    inside = ((x >= -0.5) & (x <= width + 0.5))[None] & ((y >= -0.5) & (y <= height + 0.5))[:, None]
    grid = torch.stack(
        torch.meshgrid(2 * y / height - 1, 2 * x / width - 1, indexing="ij")[::-1], dim=-1
    )
    samples = F.grid_sample(image[None], grid[None], padding_mode="border", align_corners=False)
    return F.avg_pool2d(samples[0] * inside, (per_cell[1], per_cell[0]))


def labels_in_image(images, boxes, size=28, margin=4):
    flags = []
    for (height, width), x in zip(images.image_sizes, boxes):
        for box in x:
            cell = (box[2:] - box[:2]) / size
            place = torch.arange(size + 2 * margin) - margin + 0.5
            x, y = (box[k] + cell[k] * place for k in (0, 1))
            flags.append(((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width)))
    return torch.stack(flags)


def bilinear(logits, x, y):
    """The value at (x, y) in cells, where everything outside of the grid is -9."""
    values = np.pad(np.maximum(logits, -9.0), 1, constant_values=-9.0)
    size = len(logits)
    x, y = np.clip([x + 0.5, y + 0.5], 0, size + 1 - 1e-9)  # the center of the first is at 0.5
    column, row = int(x), int(y)
    along, down = x - column, y - row
    upper, lower = (
        (1 - along) * values[k, column] + along * values[k, column + 1] for k in (row, row + 1)
    )
    return (1 - down) * upper + down * lower


@pytest.mark.parametrize("others_at_once", [1, 2, 16])
def test_claims_against_loops(others_at_once):
    """Boxes that overlap, one inside another, one alone, one twice."""
    boxes = torch.tensor(
        [[2, 3, 20, 15], [10, 0, 30, 28], [12, 5, 16, 9], [50, 50, 60, 90], [2, 3, 20, 15]]
    ).float()
    classes = torch.tensor([3, 3, 3, 3, 7])  # the last would claim a lot of the first
    size = 6
    logits = 4 * torch.randn(5, size, size, generator=torch.Generator().manual_seed(4))
    logits[0, 0] = -30.0
    expected = torch.zeros_like(logits, dtype=torch.bool)
    for own, row, column in itertools.product(range(5), range(size), range(size)):
        low, side = boxes[own, :2], (boxes[own, 2:] - boxes[own, :2]) / size
        x, y = (low + side * (torch.tensor([column, row]) + 0.5)).tolist()
        for other in {x for x in range(5) if classes[x] == classes[own]} - {own}:
            low, side = boxes[other, :2], (boxes[other, 2:] - boxes[other, :2]) / size
            place = ((torch.tensor([x, y]) - low) / side).tolist()
            claim = bilinear(logits[other].numpy(), *place)
            if claim > max(float(logits[own, row, column]), -9) + 2:
                expected[own, row, column] = True
    found = claimed_by_others(logits, boxes, classes, others_at_once)
    assert torch.equal(found, expected)
    assert 0.05 < found.float().mean() < 0.5 and not found[3:].any()
    assert claimed_by_others(logits, boxes, torch.zeros(5))[4].any()


def test_claims_of_few_boxes():
    none = torch.zeros(0)
    assert claimed_by_others(torch.zeros(0, 4, 4), torch.zeros(0, 4), none).shape == (0, 4, 4)
    alone = torch.tensor([[0.0, 0.0, 5.0, 5.0]])
    assert not claimed_by_others(torch.full((1, 4, 4), -20.0), alone, torch.zeros(1)).any()


def test_boxes_of_different_images_do_not_claim(cfg, build_heads):
    """Two boxes at the same place: in one image the surer one takes all, in two images nothing."""
    heads = build_heads(cfg)
    supervision = heads.self_training
    supervision.crf.forward = lambda logits, *args, **kwargs: logits
    logits = torch.stack([torch.full((28, 28), 1.0), torch.full((28, 28), 5.0)])[:, None]
    supervision.teacher.forward = lambda logits: logits
    box = torch.tensor([[1.0, 1.0, 9.0, 9.0]])
    classes = torch.tensor([4, 4])
    apart, _ = supervision.labels((logits,), None, [Boxes(box), Boxes(box)], classes)
    boxes = [Boxes(box.repeat(2, 1)), Boxes(box[:0])]
    together, own = supervision.labels((logits,), None, boxes, classes)
    assert apart.all() and own.all()
    assert not together[0].any() and together[1].all()


def test_masks_of_novel_classes_are_not_used(cfg, build_heads, make_batch, run_heads):
    results = []
    for change in (False, True):
        heads = build_heads(cfg)
        batch = make_batch()
        for x in batch[2]:
            if change:
                x.gt_masks.tensor[~x.gt_has_mask] ^= True
        torch.manual_seed(3)
        losses, _ = run_heads(heads, batch)
        learn(heads, losses)
        results.append((losses, tensors(heads)))
    assert results[0][0]["loss_self_training"] > 0
    for one, other in zip(*results):
        assert one.keys() == other.keys()
        assert all(torch.equal(x, other[name]) for name, x in one.items())


@pytest.mark.parametrize("cam_on", [True, False])
def test_the_teacher_does_not_learn(cfg, build_heads, make_batch, run_heads, cam_on):
    """The mask head does, and by way of the CAM in it the box head's classification branch."""
    cfg.MODEL.ROI_MASK_HEAD.CAM_ON = cam_on
    heads = build_heads(cfg)
    losses, _ = run_heads(heads, make_batch())
    assert not any(p.requires_grad for p in heads.self_training.parameters())
    losses["loss_self_training"].backward()
    learning = {n for n, p in heads.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(n.startswith("mask_head.") for n in learning)
    assert ("box_head.cls_branch.conv1.weight" in learning) == cam_on
    assert not any("projector" in n or "self_training" in n for n in learning)


def test_teacher_is_the_average(cfg, build_heads, make_batch, run_heads):
    cfg.MODEL.ROI_MASK_HEAD.SELF_TRAINING.DECAY = 0.2
    cfg.MODEL.ROI_MASK_HEAD.NORM = "BN"  # its statistics are averaged as well, its count is not
    heads = build_heads(cfg)
    for value in heads.self_training.teacher.state_dict().values():
        value.fill_(7)  # what it was before the training does not matter
    expected = None
    for iteration in range(4):
        decay = min(0.2, iteration / (iteration + 9))
        new = tensors(heads.mask_head)
        expected = {
            k: v if iteration == 0 or k.endswith("batches_tracked")
            else decay * expected[k] + (1 - decay) * v
            for k, v in new.items()
        }  # fmt: skip
        losses, _ = run_heads(heads, make_batch(), iteration)
        learn(heads, losses)
        assert not heads.self_training.teacher.training and heads.mask_head.training
        for name, value in heads.self_training.teacher.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(new["predictor.weight"], expected["predictor.weight"])


@pytest.mark.parametrize(
    "start, ramp, expected",
    [
        (0.0, 0.0, [1, 1, 1, 1, 1]),
        (0.25, 0.0, [0, 0, 1, 1, 1]),
        (0.25, 0.5, [0, 0, 0.25, 0.5, 1]),
        (1.0, 1.0, [0, 0, 0, 0, 0]),
    ],
)
def test_ramp(cfg, build_heads, run_heads, spy, start, ramp, expected):
    """Of 8 iterations: 0, 1, 2, 3 and 7. Without a weight, there are no labels to be made."""
    cfg.SOLVER.MAX_ITER = 8
    keys = cfg.MODEL.ROI_MASK_HEAD.SELF_TRAINING
    keys.START, keys.RAMP, keys.DECAY = start, ramp, 0.0
    heads = build_heads(cfg)
    labels = spy(heads.self_training, "labels")
    losses = []
    for iteration in (0, 1, 2, 3, 7):
        torch.manual_seed(0)
        losses.append(run_heads(heads, iteration=iteration)[0]["loss_self_training"].item())
    whole = SelfTraining.from_config(cfg, heads.mask_head)
    whole.start, whole.ramp_length = 0, 0
    heads.self_training = whole
    torch.manual_seed(0)
    full = run_heads(heads)[0]["loss_self_training"].item()
    assert losses == pytest.approx([x * full for x in expected]) and full > 0
    assert len(labels.calls) == sum(x > 0 for x in expected)


@pytest.mark.parametrize(
    "batch",
    [{"num_boxes": (0, 0)}, {"num_boxes": (0, 3)}, {"has_mask": True}, {"has_mask": False}],
    ids=str,
)
def test_few_boxes(cfg, build_heads, make_batch, run_heads, batch):
    heads = build_heads(cfg)
    losses, _ = run_heads(heads, make_batch(**batch))
    nothing = batch.get("has_mask") is True or batch.get("num_boxes") == (0, 0)
    assert (losses["loss_self_training"] == 0) == nothing
    sum(losses.values()).backward()
    for name, parameter in heads.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_without_colors_the_teacher_decides(cfg, build_heads, run_heads, spy):
    cfg.MODEL.ROI_MASK_HEAD.COLOR_CRF.WEIGHT = 0.0
    heads = build_heads(cfg)
    teacher = spy(heads.self_training.teacher, "forward")
    labels = spy(heads.self_training, "labels")
    run_heads(heads)
    assert torch.equal(labels.results[0][0], teacher.results[0][:, 0] > 0)


def test_order_of_color_channels(cfg, build_heads):
    results = []
    image = torch.rand(3, 60, 60)
    boxes, classes = [Boxes(torch.tensor([[10.0, 12.0, 50.0, 44.0]]))], torch.tensor([2])
    for order in ("RGB", "BGR"):
        cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_STD = order, [90.0] * 3
        supervision = build_heads(cfg).self_training
        x = image if order == "RGB" else image.flip(0)
        features = torch.randn(1, 16, 14, 14, generator=torch.Generator().manual_seed(2))
        inputs = features, None, torch.zeros(1, 10, 14, 14)
        results.append(supervision.labels(inputs, ImageList.from_tensors([x]), boxes, classes)[0])
    assert torch.equal(*results)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision(cfg, build_heads, run_heads, precision, spy):
    """Labels are made in single precision."""
    heads = build_heads(cfg)
    labels = spy(heads.self_training, "labels")
    with torch.autocast("cpu", dtype=precision):
        losses, _ = run_heads(heads)
    loss = losses["loss_self_training"]
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    with torch.autocast("cpu", dtype=precision):
        again = heads.self_training.labels(*labels.calls[0])[0]
    assert torch.equal(again, labels.results[0][0])
    sum(losses.values()).backward()
    assert heads.mask_head.predictor.weight.grad.any()


def test_inference_is_as_without(cfg, build_heads, make_batch, detect, spy):
    """The same masks, and the teacher is not asked."""
    features, proposals, _ = make_batch()
    heads = build_heads(cfg)
    teacher = spy(heads.self_training.teacher, "forward")
    found = detect(heads, features, proposals)
    cfg.MODEL.ROI_MASK_HEAD.SELF_TRAINING.LOSS_WEIGHT = 0.0
    plain = build_heads(cfg)
    plain.load_state_dict({k: v for k, v in heads.state_dict().items() if "teacher" not in k})
    expected = detect(plain, features, proposals)
    assert plain.self_training is None and not teacher.calls
    assert all(torch.equal(x.pred_masks, y.pred_masks) for x, y in zip(found, expected))


def test_names_of_tensors(cfg, build_heads):
    names = set(build_heads(cfg).state_dict())
    cfg.MODEL.ROI_MASK_HEAD.SELF_TRAINING.LOSS_WEIGHT = 0.0
    heads = build_heads(cfg)
    teacher = {f"self_training.teacher.{name}" for name in heads.mask_head.state_dict()}
    assert names - set(heads.state_dict()) == teacher


def test_every_key_reaches_the_loss(heads_cfg, build_heads):
    assert build_heads(heads_cfg).self_training is None  # off by default
    heads_cfg.SOLVER.MAX_ITER = 200
    heads_cfg.MODEL.PIXEL_MEAN, heads_cfg.MODEL.PIXEL_STD = [9.0, 8.0, 7.0], [1.0, 2.0, 3.0]
    options = {
        "SELF_TRAINING": {"LOSS_WEIGHT": 0.7, "START": 0.25, "RAMP": 0.5, "DECAY": 0.9},
        "COLOR_CRF": {
            "WEIGHT": 5.0,
            "TEST_WEIGHT": 1.5,
            "TEST_BIAS": 0.25,
            "DISTANCE": 0.2,
            "COLOR_DISTANCE": 6.0,
        },
    }
    for group, values in options.items():
        for name, value in values.items():
            assert name in heads_cfg.MODEL.ROI_MASK_HEAD[group]
            heads_cfg.MODEL.ROI_MASK_HEAD[group][name] = value
    found = build_heads(heads_cfg).self_training
    assert (found.weight, found.start, found.ramp_length, found.decay) == (0.7, 50, 100, 0.9)
    crf = found.crf
    assert (crf.weight, crf.test_weight, crf.test_bias) == (5.0, 1.5, 0.25)
    assert (crf.distance, crf.color_distance) == (0.2, 6.0)
    assert crf.pixel_mean.tolist() == [9, 8, 7] and crf.pixel_std.tolist() == [1, 2, 3]
    assert crf.is_bgr and heads_cfg.INPUT.FORMAT == "BGR"
    heads_cfg.INPUT.FORMAT = "L"
    with pytest.raises(ValueError, match="SELF_TRAINING need INPUT.FORMAT"):
        build_heads(heads_cfg)


def test_needs_ground_truth_boxes(cfg, build_heads):
    cfg.MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY = False
    cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = False
    with pytest.raises(ValueError, match="SELF_TRAINING needs .*PROPOSAL_APPEND_GT"):
        build_heads(cfg)


class Model(torch.nn.Module):
    def __init__(self, roi_heads):
        super().__init__()
        self.roi_heads = roi_heads


def test_checkpoints(cfg, build_heads, tmp_path, caplog):
    """Only a resumed training needs the teacher; nobody else misses it, or is told of it."""
    off = copy.deepcopy(cfg)
    off.MODEL.ROI_MASK_HEAD.SELF_TRAINING.LOSS_WEIGHT = 0.0
    for name, saved in {"with": cfg, "without": off}.items():
        (tmp_path / name).mkdir()
        model = Model(build_heads(saved))
        for value in model.state_dict().values():
            value.copy_(torch.rand_like(value.float()))
        ContrastMaskCheckpointer(model, str(tmp_path / name)).save("model_0000001", iteration=1)
        for loaded in (cfg, off):
            other = Model(build_heads(loaded))
            caplog.clear()
            path = str(tmp_path / name / "model_0000001.pth")
            ContrastMaskCheckpointer(other, require_all=True).load(path)
            assert "self_training" not in caplog.text
            assert torch.equal(
                other.roi_heads.mask_head.predictor.weight,
                model.roi_heads.mask_head.predictor.weight,
            )
    resumed = Model(build_heads(cfg))
    ContrastMaskCheckpointer(resumed, str(tmp_path / "with")).resume_or_load("", resume=True)
    stored = torch.load(tmp_path / "with" / "model_0000001.pth", weights_only=True)["model"]
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, stored[name]), name
    checkpointer = ContrastMaskCheckpointer(resumed, str(tmp_path / "without"), require_all=True)
    with pytest.raises(ValueError, match=r"roi_heads\.self_training\.teacher"):
        checkpointer.resume_or_load("", resume=True)
    checkpointer.load(str(tmp_path / "without" / "model_0000001.pth"))  # no resumed training
