import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from contrastmask.modeling.contrastive_head import ContrastiveHead, Projector


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
