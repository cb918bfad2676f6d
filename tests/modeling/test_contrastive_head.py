import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from contrastmask.modeling.contrastive_head import ContrastiveHead


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
    keys = [projected[k] for k in sampled]
    q, pos, neg = queries[0], keys[0], keys[1]
    expected = []
    for k in pos:
        s, j = (F.cosine_similarity(q, x - q, dim=-1) for x in (k, neg))
        expected.append(-torch.log((s / 0.3).exp() / (s.exp() + (j / 0.3).exp().sum())))
    torch.testing.assert_close(
        terms.foreground_easy, torch.stack(expected).mean(), atol=1e-4, rtol=1e-4
    )


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
