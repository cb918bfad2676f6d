"""Our modules against numbers measured with the authors' code (tests/reference)."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec

from contrastmask import add_contrastmask_config
from contrastmask.modeling.box_head import ContrastMaskBoxHead, ContrastMaskBoxPredictor
from contrastmask.modeling.cam import class_activation_map, min_max_normalize, resize_map
from contrastmask.modeling.contrastive_head import ContrastiveHead
from contrastmask.modeling.contrastive_loss import query_sharing_loss
from contrastmask.modeling.mask_head import ContrastMaskMaskHead
from contrastmask.modeling.pixel_sets import (
    boundary_ring,
    build_pixel_sets,
    mask_edges,
    sample_keys,
)
from contrastmask.modeling.self_similarity import enhance_by_self_similarity

REFERENCE_DIR = Path(__file__).parents[1] / "reference"
KEY_SETS = ("easy_positive", "easy_negative", "hard_positive", "hard_negative")


@pytest.fixture
def load_reference():
    """Function: file name -> dict of float32, bool or int64 tensors measured with authors' code."""

    def load(name):
        with np.load(REFERENCE_DIR / name) as data:
            return {k: torch.from_numpy(data[k]) for k in data if data[k].dtype.kind != "U"}

    return load


@pytest.fixture
def fill():
    """Function: (name, shape, scale) -> the synthetic tensor of that name in [-scale, scale)."""

    def make(name, shape, scale):
        generator = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
        values = generator.random(tuple(shape), np.float32) * 2 - 1
        return torch.from_numpy(values * np.float32(scale))

    return make


@pytest.fixture
def fill_parameters(fill):
    """
    Function: (module, prefix, official names) sets parameters and BatchNorm statistics of a module
    as the reference had them. The names map our parameter names to the authors'.
    """

    def set_all(module, prefix, official_name):
        for name, value in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            official = official_name(name)
            full_name = prefix + official
            if value.dim() >= 2:
                fan_in = value[0].numel()
                new = fill(full_name, value.shape, (6 / fan_in) ** 0.5)
            elif official.endswith("bn.weight") or official.endswith("running_var"):
                new = 1 + fill(full_name, value.shape, 0.2)
            elif official.endswith("running_mean"):
                new = fill(full_name, value.shape, 0.1)
            else:
                new = fill(full_name, value.shape, 0.05)
            value.copy_(new)

    return set_all


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 4
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 4
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    return cfg


def pixel_sets_of(reference):
    return build_pixel_sets(
        reference["masks"].bool(),
        ~reference["is_novel"],
        reference["cam28_normalized"],
        delta=0.1,
        fallback_delta=0.05,
        min_query_size=2,
        ring_width=1,
        min_set_size=5,
    )


def test_edges_and_ring(load_reference):
    reference = load_reference("edges.npz")
    edges = mask_edges(reference["masks"].bool())
    assert torch.equal(edges, reference["edges"].bool())
    ring = boundary_ring(edges, 1)
    has_edge = edges.flatten(1).any(1)
    assert has_edge.sum() == 12
    assert torch.equal((ring | edges)[has_edge], reference["dilated"].bool()[has_edge])
    assert not (ring & edges).any()
    assert not ring[~has_edge].any()


def test_cam_chain(load_reference):
    reference = load_reference("pixel_sets.npz")
    cam14 = resize_map(reference["cam7"], 14)
    cam28 = resize_map(cam14, 28)
    torch.testing.assert_close(cam14, reference["cam14"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(cam28, reference["cam28"], atol=1e-6, rtol=1e-6)
    normalized = min_max_normalize(cam28)[:, 0]
    torch.testing.assert_close(normalized, reference["cam28_normalized"], atol=1e-6, rtol=1e-6)


def test_pixel_sets(load_reference):
    reference = load_reference("pixel_sets.npz")
    sets = pixel_sets_of(reference)
    assert torch.equal(sets.query_foreground, reference["query_foreground"].bool())
    assert torch.equal(sets.query_background, reference["query_background"].bool())
    # The reference's distance transform invents a ring for the one mask without any edge.
    has_edge = mask_edges(reference["masks"].bool()).flatten(1).any(1)
    assert has_edge.sum() == 15 and not reference["kept"][~has_edge].any()
    for name in KEY_SETS:
        expected = reference[name].bool()
        assert torch.equal(getattr(sets.keys, name)[has_edge], expected[has_edge]), name
    assert torch.equal(sets.kept, reference["kept"].bool())


def test_sampled_counts(load_reference):
    reference = load_reference("pixel_sets.npz")
    sets = pixel_sets_of(reference)
    sampled = sample_keys(sets, 0.3)
    for name in KEY_SETS:
        counts = getattr(sampled, name).flatten(1).sum(1)
        assert torch.equal(counts[sets.kept], reference[f"sampled_count_{name}"]), name
        assert not counts[~sets.kept].any()


def test_self_similarity(load_reference):
    reference = load_reference("self_similarity.npz")
    enhanced = enhance_by_self_similarity(reference["x"])
    torch.testing.assert_close(enhanced, reference["y"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["released", "paper"])
def test_contrastive_loss(load_reference, form):
    reference = load_reference("contrastive_loss.npz")
    inputs = [reference[f"query_{k}"] for k in ("foreground", "background")]
    inputs += [reference[k] for k in KEY_SETS]
    inputs = [x.clone().requires_grad_() for x in inputs]
    queries = torch.stack([q.mean(dim=0) for q in inputs[:2]])
    key_sets = torch.block_diag(*[torch.ones(len(k), 1) for k in inputs[2:]]).bool()
    terms = query_sharing_loss(
        queries,
        torch.cat(inputs[2:]),
        key_sets,
        temperature_easy=0.3,
        temperature_hard=0.7,
        form=form,
    )
    for name, value in terms._asdict().items():
        expected = reference[f"{form}_{name}"].float().squeeze()
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    if form == "released":
        torch.testing.assert_close(sum(terms), reference["released_total"], atol=1e-5, rtol=1e-5)
        sum(terms).backward()
        names = ("query_foreground", "query_background") + KEY_SETS
        for name, x in zip(names, inputs):
            expected = reference[f"released_grad_{name}"]
            torch.testing.assert_close(x.grad, expected, atol=1e-5, rtol=1e-5)


def official_box_name(name):
    name = name.replace("cls_score", "fc_cls").replace("bbox_pred", "fc_reg")
    branches = {"shared": "shared_convs", "cls_branch": "cls_convs", "reg_branch": "reg_convs"}
    return re.sub(r"^(\w+)\.conv(\d+)\.", lambda m: f"{branches[m[1]]}.{int(m[2]) - 1}.conv.", name)


def official_mask_name(name):
    name = re.sub(r"^convs\.mask_fcn(\d+)", lambda m: f"convs.{int(m[1]) - 1}.conv", name)
    layers = {"deconv": "upsample", "predictor": "conv_logits", "fuse": "fuseconv"}
    for ours, theirs in layers.items():
        name = re.sub(rf"^{ours}\.", f"{theirs}.", name)
    return name


def official_contrastive_name(name):
    name = re.sub(r"^encoder\.conv(\d+)", lambda m: f"encoder.{int(m[1]) - 1}.conv", name)
    name = re.sub(r"^projector\.linear", "projector.2", name)
    name = re.sub(
        r"^projector\.convs\.conv(\d+)\.norm", lambda m: f"projector.{int(m[1]) - 1}.bn", name
    )
    return re.sub(
        r"^projector\.convs\.conv(\d+)", lambda m: f"projector.{int(m[1]) - 1}.conv", name
    )


def test_box_head(cfg, load_reference, fill, fill_parameters):
    reference = load_reference("box_head.npz")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
    head = ContrastMaskBoxHead(cfg, ShapeSpec(channels=256, height=7, width=7))
    predictor = ContrastMaskBoxPredictor(cfg, head.output_shape)
    for module in (head, predictor):
        fill_parameters(module, "box_head.", official_box_name)
    features = head(fill("box_head.x", (4, 256, 7, 7), 1).relu())
    scores, deltas = predictor(features)
    torch.testing.assert_close(scores, reference["cls_score"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(deltas, reference["bbox_pred"], atol=1e-4, rtol=1e-4)
    for c in range(reference["cam"].shape[1]):
        weights = predictor.cls_score.weight[c].expand(4, -1)
        cam = class_activation_map(features.class_map, weights)[:, 0]
        torch.testing.assert_close(cam, reference["cam"][:, c], atol=1e-4, rtol=1e-4)


def test_mask_branch(cfg, load_reference, fill, fill_parameters):
    reference = load_reference("mask_branch.npz")
    mask_head = ContrastMaskMaskHead(cfg, ShapeSpec(channels=256, height=14, width=14))
    contrastive = ContrastiveHead(cfg, ShapeSpec(channels=256, height=28, width=28)).eval()
    fill_parameters(mask_head, "mask_head.", official_mask_name)
    fill_parameters(contrastive, "mask_head.contrastive_head.", official_contrastive_name)
    x14 = fill("mask_head.x14", (3, 256, 14, 14), 1).relu()
    x28 = fill("mask_head.x28", (3, 256, 28, 28), 1).relu()

    encoded = contrastive(x28)
    enhanced = enhance_by_self_similarity(encoded)
    cam = min_max_normalize(resize_map(reference["cam7"], 14))
    logits = mask_head(x14, cam, enhanced)

    torch.testing.assert_close(
        enhanced[:, ::32, ::3, ::3], reference["enhanced_subset"], atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        contrastive.projector(encoded)[:, ::3, ::3, ::32],
        reference["projected_subset"],
        atol=1e-4,
        rtol=1e-4,
    )
    torch.testing.assert_close(logits, reference["mask_logits"], atol=1e-4, rtol=1e-4)
