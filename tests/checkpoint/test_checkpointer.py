import logging
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.solver import build_lr_scheduler, build_optimizer

from contrastmask.checkpoint import ContrastMaskCheckpointer


def test_ordinary_checkpoints_load_as_in_detectron2(build_narrow, load, tmp_path, caplog):
    source, ours, theirs = (build_narrow() for _ in range(3))
    weights = {k: v for k, v in source.state_dict().items() if "mask_head" not in k}
    torch.save({"model": weights, "iteration": 5}, tmp_path / "a.pth")
    logs = []
    for checkpointer in (ContrastMaskCheckpointer(ours), DetectionCheckpointer(theirs)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert checkpointer.load(str(tmp_path / "a.pth")) == {"iteration": 5}
        logs.append([x.message for x in caplog.records if "mask_head" in x.message])
    assert logs[0] == logs[1] and len(logs[0]) == 1
    for name, value in weights.items():
        assert torch.equal(ours.state_dict()[name], value), name
        assert torch.equal(theirs.state_dict()[name], value), name


def test_model_zoo_files(build_narrow, load, tmp_path):
    source, target = build_narrow(), build_narrow()
    weights = {k: v.numpy() for k, v in source.state_dict().items()}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "Detectron2 Model Zoo"}))
    load(target, path, require_all=True)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name

    # Backbones with the names of Caffe2 and of torchvision, matched by Detectron2's rules
    value = source.backbone.bottom_up.res2[0].conv1.weight
    matched = {"model": {"res2.0.conv1.weight": value.numpy() + 2}, "matching_heuristics": True}
    for number, content in enumerate([{"res2_0_branch2a_w": value.numpy() + 1}, matched], 1):
        path.write_bytes(pickle.dumps(content))
        load(target, path)
        assert torch.equal(target.backbone.bottom_up.res2[0].conv1.weight, value + number)


@pytest.mark.parametrize(
    "opts, message",
    [
        (
            ["MODEL.ROI_HEADS.NUM_CLASSES", 5],
            r"roi_heads\.box_predictor\.cls_score\.weight.* \(4, 6\) .*checkpoint.* \(6, 6\)",
        ),
        (
            ["MODEL.RESNETS.RES2_OUT_CHANNELS", 16],
            r"backbone\.fpn_lateral2\.weight.* \(8, 8, 1, 1\) ",
        ),
        (["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]], r"proposal_generator\."),
    ],
)
@pytest.mark.parametrize("official", [True, False])
def test_other_shapes_are_an_error(
    build_narrow, official_state_dict, load, tmp_path, opts, message, official
):
    source = build_narrow()
    weights = official_state_dict(source) if official else source.state_dict()
    key = "state_dict" if official else "model"
    torch.save({key: weights}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth does not fit.*" + message):
        load(build_narrow(*opts), tmp_path / "a.pth")


def test_excluded_parts_keep_their_values(build_narrow, load, tmp_path, caplog):
    source = build_narrow()
    target = build_narrow("MODEL.ROI_HEADS.NUM_CLASSES", 5)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    torch.save({"model": source.state_dict()}, tmp_path / "a.pth")
    with caplog.at_level(logging.INFO):
        load(target, tmp_path / "a.pth", exclude=["roi_heads.box_predictor"], require_all=True)
    assert "MODEL.WEIGHTS_EXCLUDE: 4 tensors" in caplog.text
    for name, value in target.state_dict().items():
        is_kept = name.startswith("roi_heads.box_predictor.")
        assert torch.equal(value, before[name] if is_kept else source.state_dict()[name]), name


def with_prefix(weights, path):
    torch.save({"model": {f"module.{k}": v for k, v in weights.items()}}, path / "a.pth")
    return path / "a.pth"


def without_outer_names(weights):
    return {k.removeprefix("roi_heads.box_predictor."): v for k, v in weights.items()}


def as_torchvision_of_the_model_zoo(weights, path):
    arrays = {k: v.numpy() for k, v in without_outer_names(weights).items()}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (path / "a.pkl").write_bytes(pickle.dumps(content))
    return path / "a.pkl"


def as_caffe2(weights, path):
    names = {
        "conv1_w": "backbone.bottom_up.stem.conv1.weight",
        "cls_score_w": "roi_heads.box_predictor.cls_score.weight",
        "cls_score_b": "roi_heads.box_predictor.cls_score.bias",
    }
    blobs = {theirs: weights[ours].numpy() for theirs, ours in names.items()}
    (path / "a.pkl").write_bytes(pickle.dumps(blobs))
    return path / "a.pkl"


@pytest.mark.parametrize("write", [with_prefix, as_torchvision_of_the_model_zoo, as_caffe2])
def test_exclusion_goes_by_names_of_the_model(build_narrow, load, tmp_path, write):
    """Whatever names the file has."""
    source, target = build_narrow(), build_narrow()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    path = write(source.state_dict(), tmp_path)
    load(target, path, exclude=["roi_heads.box_predictor.cls_score"])
    names = ["roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.cls_score.bias"]
    for name in names:
        assert torch.equal(target.state_dict()[name], before[name]), name
    conv1 = source.backbone.bottom_up.stem.conv1.weight
    assert torch.equal(target.backbone.bottom_up.stem.conv1.weight, conv1)

    load(target, path)  # otherwise they are loaded
    for name in names:
        assert not torch.equal(target.state_dict()[name], before[name]), name


def test_excluded_normalization_leaves_that_of_others_alone(build_narrow, load, tmp_path):
    """Loading a part of a state dict resets the statistics of frozen batch norm in the others."""
    opts = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.NORM", "FrozenBN"]
    source, target = build_narrow(*opts), build_narrow(*opts)
    before = target.backbone.bottom_up.res3[0].conv1.norm.running_mean.clone()
    torch.save({"model": source.state_dict()}, tmp_path / "a.pth")
    load(target, tmp_path / "a.pth", exclude=["backbone.bottom_up.res3"])
    norms = [x.backbone.bottom_up.res2[0].conv1.norm for x in (source, target)]
    assert torch.equal(norms[0].running_mean, norms[1].running_mean)
    assert torch.equal(target.backbone.bottom_up.res3[0].conv1.norm.running_mean, before)


def test_exclusion_is_advised_where_it_helps(build_narrow, load, tmp_path):
    """Evaluation and resumed trainings load everything."""
    torch.save({"model": build_narrow().state_dict()}, tmp_path / "a.pth")
    target = build_narrow("MODEL.ROI_HEADS.NUM_CLASSES", 5)
    with pytest.raises(ValueError, match=r"WEIGHTS_EXCLUDE \"\['roi_heads.box_predictor'\]"):
        load(target, tmp_path / "a.pth")
    torch.save({"model": {}}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(ValueError, match="does not fit") as error:
            load(target, tmp_path / name, require_all=True)
        assert "WEIGHTS_EXCLUDE" not in str(error.value)


def test_excluded_part_has_to_exist(build_narrow):
    for part in ("roi_heads.box_pred", "nothing"):
        with pytest.raises(ValueError, match=f"MODEL.WEIGHTS_EXCLUDE.*{part}"):
            ContrastMaskCheckpointer(build_narrow(), exclude=[part])


def test_missing_file(build_narrow, load, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth.*MODEL.WEIGHTS"):
        load(build_narrow(), tmp_path / "nothing.pth")


def test_no_file(build_narrow, load):
    load(build_narrow(), "")  # a training that starts from random weights
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        load(build_narrow(), "", require_all=True)


def test_unknown_state_dict(build_narrow, load, tmp_path):
    torch.save({"meta": {}, "state_dict": {"a": torch.ones(1), "b": "c"}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth.*'b' is a str"):
        load(build_narrow(), tmp_path / "a.pth")


@pytest.mark.parametrize(
    "content, message",
    [
        ([torch.ones(1)], "holds a list"),
        ({"epoch": 3, "weights": {}}, "'epoch' is a int"),
        ({"model": 3}, "'model' is a int"),
        (torch.ones(1), "holds a Tensor"),
        ({7: torch.ones(1)}, "entry 7"),
    ],
)
def test_other_content(build_narrow, load, tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"a\.pth.*{message}"):
        load(build_narrow(), tmp_path / "a.pth")


def test_array_of_objects(build_narrow, load, tmp_path):
    content = {"model": {"a": np.array([{}])}, "__author__": "x"}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"a\.pkl.*'a' is a ndarray"):
        load(build_narrow(), tmp_path / "a.pkl")


def test_pycls_files_are_refused(build_narrow, load, tmp_path):
    """Detectron2 would run code from them."""
    torch.save({"model_state": {"res2.0.conv1.weight": torch.ones(1)}}, tmp_path / "a.pyth")
    with pytest.raises(ValueError, match=r"a\.pyth.*pycls"):
        load(build_narrow(), tmp_path / "a.pyth")


def test_training_resumes(build_narrow, narrow_cfg, tmp_path):
    cfg = narrow_cfg("SOLVER.MAX_ITER", 10, "SOLVER.STEPS", (5,), "SOLVER.WARMUP_ITERS", 2)

    def make():
        model = build_narrow()
        optimizer = build_optimizer(cfg, model)
        scheduler = build_lr_scheduler(cfg, optimizer)
        state = {"optimizer": optimizer, "scheduler": scheduler}
        # What a resumed training needs is loaded whatever is excluded.
        excluded = ["roi_heads.box_predictor"]
        return model, state, ContrastMaskCheckpointer(model, tmp_path, exclude=excluded, **state)

    model, state, checkpointer = make()
    for _ in range(3):
        sum(p.sum() for p in model.parameters() if p.requires_grad).backward()
        state["optimizer"].step()
        state["scheduler"].step()
    checkpointer.save("model_0000002", iteration=2)

    new_model, new_state, new_checkpointer = make()
    assert new_checkpointer.resume_or_load("", resume=True) == {"iteration": 2}
    for name, value in model.state_dict().items():
        assert torch.equal(new_model.state_dict()[name], value), name
    assert new_state["scheduler"].state_dict() == state["scheduler"].state_dict()
    momenta = [x.state_dict()["state"] for x in (new_state["optimizer"], state["optimizer"])]
    assert momenta[0].keys() == momenta[1].keys() and len(momenta[0]) > 0
    for k, v in momenta[0].items():
        assert torch.equal(v["momentum_buffer"], momenta[1][k]["momentum_buffer"])
