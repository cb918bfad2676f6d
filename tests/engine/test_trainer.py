import json
import math

import pytest
import small_model
import torch
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model

from contrastmask.data import check_supervision
from contrastmask.data.resizing import TTAMapper
from contrastmask.engine import Trainer, load_config
from contrastmask.engine.solver import build_optimizer


@pytest.fixture(scope="module")
def opts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainer")
    small_model.write_data(folder, num_images=2)
    return [*small_model.options(folder, "trainer_data"), "OUTPUT_DIR", str(folder)]


def test_test_time_augmentation(opts, monkeypatch):
    aug = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 96)", "TEST.AUG.MAX_SIZE", "96"]
    cfg = load_config(small_model.CONFIG_FILE, opts + aug)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    loader = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
    with torch.no_grad():
        (output,) = GeneralizedRCNNWithTTA(cfg, model)(next(iter(loader)))
    instances = output["instances"]
    assert len(instances) > 0
    assert instances.pred_masks.shape == (len(instances), 64, 64)
    mapped = []
    call = TTAMapper.__call__
    monkeypatch.setattr(TTAMapper, "__call__", lambda *args: mapped.append(1) or call(*args))
    results = Trainer.test_with_tta(cfg, model)
    assert len(mapped) == 2  # images
    assert not math.isnan(results["segm_TTA"]["AP"])
    assert "segm-novel_TTA" in results


def test_slower_backbone_with_adamw(opts):
    cfg = load_config(small_model.CONFIG_FILE, opts)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    names = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    assert set(rates) == set(names)
    for key, name in names.items():
        slow = name.startswith("backbone.bottom_up.")
        assert rates[key] == pytest.approx(4e-4 if slow else 2e-3), name


def test_every_key_reaches_the_optimizer(opts):
    keys = ["SOLVER.BASE_LR", "0.01", "SOLVER.BACKBONE_MULTIPLIER", "0.25"]
    keys += ["SOLVER.BIAS_LR_FACTOR", "2.0", "SOLVER.WEIGHT_DECAY", "0.1"]
    keys += ["SOLVER.WEIGHT_DECAY_NORM", "0.2", "SOLVER.WEIGHT_DECAY_BIAS", "0.3"]
    cfg = load_config(small_model.CONFIG_FILE, [*opts, *keys])
    bottom_up = torch.nn.ModuleDict(
        {"conv": torch.nn.Conv2d(1, 1, 1), "bn": torch.nn.BatchNorm2d(1)}
    )
    backbone = torch.nn.ModuleDict({"bottom_up": bottom_up, "fpn": torch.nn.Conv2d(1, 1, 1)})
    model = torch.nn.ModuleDict({"backbone": backbone})
    values = {
        id(p): (group["lr"], group["weight_decay"])
        for group in build_optimizer(cfg, model).param_groups
        for p in group["params"]
    }
    assert {n: pytest.approx(values[id(p)]) for n, p in model.named_parameters()} == {
        "backbone.bottom_up.conv.weight": (0.0025, 0.1),
        "backbone.bottom_up.conv.bias": (0.005, 0.3),
        "backbone.bottom_up.bn.weight": (0.0025, 0.2),
        "backbone.bottom_up.bn.bias": (0.005, 0.3),
        "backbone.fpn.weight": (0.01, 0.1),
        "backbone.fpn.bias": (0.02, 0.3),
    }


def test_frozen_stages_of_the_backbone(opts):
    for freeze_at, first_trained in ((0, "_conv_stem"), (2, "_blocks.3."), (4, "_blocks.11.")):
        cfg = load_config(small_model.CONFIG_FILE, [*opts, "MODEL.BACKBONE.FREEZE_AT", freeze_at])
        net = build_model(cfg).backbone.bottom_up.net
        trained = [name for name, p in net.named_parameters() if p.requires_grad]
        assert trained[0].startswith(first_trained)


@pytest.mark.parametrize(
    "broken", [["SOLVER.OPTIMIZER", "ADAM"], ["SOLVER.OPTIMIZER", "SGD"]], ids=lambda x: x[1]
)
def test_optimizer_errors_name_the_key(opts, broken):
    cfg = load_config(small_model.CONFIG_FILE, opts + broken)
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER"):
        build_optimizer(cfg, torch.nn.Linear(2, 2))


def test_channels_last_changes_rounding_only(opts):
    outputs = []
    for value in ("False", "True"):
        cfg = load_config(small_model.CONFIG_FILE, [*opts, "MODEL.CHANNELS_LAST", value])
        torch.manual_seed(0)
        model = Trainer.build_model(cfg).eval()
        weight = model.roi_heads.contrastive_head.encoder[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == (value == "True")
        loader = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
        with torch.no_grad():
            (output,) = model(next(iter(loader)))
        outputs.append(output["instances"])
    first, second = outputs
    assert len(first) > 0
    torch.testing.assert_close(first.scores, second.scores, rtol=1e-3, atol=1e-4)


def test_boxes_only(tmp_path):
    """Data without any mask: training and evaluation, with all classes novel."""
    small_model.write_data(tmp_path, num_images=2)
    path = tmp_path / "annotations" / "train.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation.pop("segmentation", None)
    path.write_text(json.dumps(content))
    opts = [*small_model.options(tmp_path, "boxes_only"), "OUTPUT_DIR", str(tmp_path / "out")]
    opts += ["MODEL.MASK_ON", "False", "DATASETS.BASE_CLASSES", "['auto']", "TEST.REPORT", "True"]
    opts += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1"]
    cfg = load_config(small_model.CONFIG_FILE, opts)
    check_supervision(cfg)
    trainer = Trainer(cfg)
    trainer.train()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "mask" not in results and results["classes"]["base"] == []
    assert results["box"]["novel"] == results["box"]["all"]
    assert results["box"]["all"]["AP"] is not None
    assert (tmp_path / "out" / "report.html").exists()


def test_excluded_weights(opts, tmp_path):
    """At the start of a training; a resumed one goes on with all that it learned."""
    part = "roi_heads.box_predictor."
    small_model.write_weights(tmp_path / "model.pth", opts)
    opts = [*opts, "MODEL.WEIGHTS", str(tmp_path / "model.pth"), "OUTPUT_DIR", str(tmp_path)]
    opts += ["MODEL.WEIGHTS_EXCLUDE", f"['{part}']"]
    cfg = load_config(small_model.CONFIG_FILE, opts)
    weights = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    trainer, resumed = Trainer(cfg), Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trained = trainer.model.state_dict()
    for name in (f"{part}cls_score.weight", "roi_heads.mask_head.predictor.weight"):
        assert torch.equal(trained[name], weights[name]) == (not name.startswith(part)), name
    trainer.checkpointer.save("model_0000001")
    resumed.resume_or_load(resume=True)
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, trained[name]), name
