import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from contrastmask.modeling.contrastive_head import ContrastiveHead, Projector, encoder_width


def test_loss_equals_projecting_every_pixel(heads_cfg):
    """The last layer runs on means and samples only; the numbers are those of the whole map."""
    heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.SAMPLE_FRACTION = 1.0
    head = ContrastiveHead(heads_cfg, ShapeSpec(channels=4, height=14, width=14))
    encoded = torch.randn(5, 10, 14, 14)
    masks = torch.zeros(5, 14, 14, dtype=torch.bool)
    masks[:, 3:10, 4:12] = True
    has_mask = torch.tensor([True, True, False, False, True])
    masks[4] = False  # this RoI is dropped
    cam = torch.rand(5, 14, 14)
    terms, sets, sampled = head.contrast(encoded, masks, has_mask, cam)
    assert sets.kept.tolist() == [True, True, True, True, False]

    projected = head.projector(encoded)
    queries = []
    for region in (sets.query_foreground, sets.query_background):
        means = [projected[r][region[r]].mean(0) for r in range(4)]
        queries.append(torch.stack(means).mean(0))
    easy_positive, easy_negative, hard_positive, hard_negative = (projected[k] for k in sampled)
    foreground, background = queries
    for name, query, positive, negative, temperature in (
        ("foreground_easy", foreground, easy_positive, easy_negative, 0.3),
        ("foreground_hard", foreground, hard_positive, hard_negative, 0.7),
        ("background_easy", background, easy_negative, easy_positive, 0.3),
        ("background_hard", background, hard_negative, hard_positive, 0.7),
    ):
        s, j = (F.cosine_similarity(query, x - query, dim=-1) for x in (positive, negative))
        others = (j / temperature).exp().sum()
        expected = -torch.log((s / temperature).exp() / (s.exp() + others)).mean()
        term = getattr(terms, name)
        torch.testing.assert_close(term, expected, atol=1e-4, rtol=1e-4, msg=name)


def test_loss_does_not_train_the_cam(heads_cfg):
    head = ContrastiveHead(heads_cfg, ShapeSpec(channels=4, height=14, width=14))
    encoded = torch.randn(2, 10, 14, 14, requires_grad=True)
    cam = torch.rand(2, 14, 14, requires_grad=True)
    masks = torch.zeros(2, 14, 14, dtype=torch.bool)
    terms, _, _ = head.contrast(encoded, masks, torch.zeros(2, dtype=torch.bool), cam)
    sum(terms).backward()
    assert cam.grad is None
    assert encoded.grad.abs().sum() > 0


def test_zero_loss_weight_builds_no_projector(heads_cfg):
    heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.LOSS_WEIGHT = 0.0
    head = ContrastiveHead(heads_cfg, ShapeSpec(channels=4, height=14, width=14))
    assert not head.has_loss
    assert all("projector" not in name for name, _ in head.named_parameters())


def test_projector_without_convolutions():
    assert Projector(4, 6, 0, "BN")(torch.randn(2, 4, 3, 3)).shape == (2, 3, 3, 6)


def test_every_key_reaches_the_head(heads_cfg):
    """Numbers that differ from each other and from the defaults."""
    keys = heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD
    values = {
        "NUM_CONV": 3,
        "CONV_DIM": 14,
        "NORM": "FrozenBN",
        "NUM_PROJECTOR_CONV": 4,
        "PROJECTOR_DIM": 9,
        "PROJECTOR_NORM": "nnSyncBN",
        "LOSS_WEIGHT": 0.45,
        "LOSS_FORM": "paper",
        "TEMPERATURE_EASY": 0.35,
        "TEMPERATURE_HARD": 0.65,
        "SAMPLE_FRACTION": 0.55,
        "DELTA": 0.15,
        "FALLBACK_DELTA": 0.025,
        "MIN_QUERY_SIZE": 6,
        "RING_WIDTH": 7,
        "MIN_SET_SIZE": 8,
        "RAMP_START": 0.125,
        "RAMP_STEPS": 11,
        "RAMP_FULL_STEP": 10,
    }
    for key, value in values.items():
        assert keys[key] != value
        keys[key] = value
    heads_cfg.SOLVER.MAX_ITER = 1000
    head = ContrastiveHead(heads_cfg, ShapeSpec(channels=4, height=14, width=14))
    assert [x.weight.shape for x in head.encoder] == [(14, 4, 3, 3)] + [(14, 14, 3, 3)] * 2
    assert [x.weight.shape for x in head.projector.convs] == [(9, 14, 1, 1)] + [(9, 9, 1, 1)] * 3
    assert head.projector.linear.weight.shape == (9, 9)
    assert {type(x.norm).__name__ for x in head.encoder} == {"FrozenBatchNorm2d"}
    assert {type(x.norm).__name__ for x in head.projector.convs} == {"SyncBatchNorm"}
    assert head.loss_weight == 0.45 and head.loss_form == "paper"
    assert (head.temperature_easy, head.temperature_hard) == (0.35, 0.65)
    assert head.sample_fraction == 0.55
    assert head.pixel_set_params == {
        "delta": 0.15,
        "fallback_delta": 0.025,
        "min_query_size": 6,
        "ring_width": 7,
        "min_set_size": 8,
    }
    assert head.ramp_params == {
        "max_iter": 1000,
        "start": 0.125,
        "num_steps": 11,
        "full_step": 10,
    }
    assert head.ramp(999) == 1 and head.ramp(0) == 0.125 and head.ramp(500) == 0.5


def test_encoder_without_convolutions(heads_cfg):
    heads_cfg.MODEL.ROI_CONTRASTIVE_HEAD.NUM_CONV = 0
    head = ContrastiveHead(heads_cfg, ShapeSpec(channels=4, height=14, width=14))
    assert encoder_width(heads_cfg, 4) == 4
    encoded = head(torch.rand(2, 4, 14, 14))
    assert encoded.shape == (2, 4, 14, 14)
    assert head.projector(encoded).shape == (2, 14, 14, 6)
