"""Every config file loads and builds; slow: each trains two real iterations on built-in images."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.modeling.backbone import ResNet

from contrastmask import get_config
from contrastmask.checkpoint.handlers import weights_url
from contrastmask.data import class_split_from_config
from contrastmask.data.shapes import ShapesParams, write_shapes
from contrastmask.engine import Trainer, load_config
from contrastmask.modeling.backbone import StoredStatisticsBatchNorm2d

CONFIGS = sorted(Path("configs").rglob("*.yaml"))
MODELS = [x for x in CONFIGS if not x.name.startswith("Base-")]
PUBLISHED = [x for x in MODELS if x.parent.name == "COCO"]
NAME = re.compile(
    r"(contrastmask|mask_rcnn)_(R_50|R_101|X_50_32x4d|X_101_32x8d)_FPN_(1x|3x)_"
    r"(voc2nonvoc|nonvoc2voc|fully_supervised)"
)
# Depth, groups, width of a group, torchvision's name
BACKBONES = {
    "R_50": (50, 1, 64, "resnet50"),
    "R_101": (101, 1, 64, "resnet101"),
    "X_50_32x4d": (50, 32, 4, "resnext50_32x4d"),
    "X_101_32x8d": (101, 32, 8, "resnext101_32x8d"),
}
# Mask AP of novel classes in the paper
PUBLISHED_AP = {
    ("50", "voc2nonvoc"): "33.4",
    ("50", "nonvoc2voc"): "37.6",
    ("101", "voc2nonvoc"): "35.0",
    ("101", "nonvoc2voc"): "39.8",
}
IMAGES_PER_EPOCH = 117266


def test_the_published_models_are_there():
    backbones = [(b, s) for b in BACKBONES for s in ("1x", "3x") if b[0] == "R" or s == "3x"]
    names = set()
    for backbone, schedule in backbones:
        for direction in ("voc2nonvoc", "nonvoc2voc"):
            names.add(f"contrastmask_{backbone}_FPN_{schedule}_{direction}")
            names.add(f"mask_rcnn_{backbone}_FPN_{schedule}_{direction}")
        names.add(f"mask_rcnn_{backbone}_FPN_{schedule}_fully_supervised")
    assert {x.stem for x in PUBLISHED} == names


# Base-FPN.yaml leaves the backbone open, Base-Small.yaml the data.
@pytest.mark.parametrize(
    "path", [x for x in CONFIGS if x.stem not in ("Base-FPN", "Base-Small")], ids=lambda x: x.stem
)
def test_builds(path):
    cfg = load_config(str(path), ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):  # no memory for weights, no time to fill them
        model = build_model(cfg)
    assert model.roi_heads.num_classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES


@pytest.mark.parametrize("value", ["[cat, dog]", "[cat, 'dog']", "['cat', 'dog']", ["cat", "dog"]])
def test_lists_on_the_command_line(value):
    cfg = get_config("quickstart.yaml", ["DATASETS.BASE_CLASSES", value, "DATASETS.TRAIN", value])
    assert cfg.DATASETS.BASE_CLASSES == ["cat", "dog"]
    assert cfg.DATASETS.TRAIN == ("cat", "dog")


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda x: x.stem)
def test_does_what_its_name_says(path):
    kind, backbone, schedule, direction = NAME.fullmatch(path.stem).groups()
    depth, groups, width, weights = BACKBONES[backbone]
    cfg = load_config(str(path), ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)

    net = model.backbone.bottom_up
    assert isinstance(net, ResNet)
    assert len(net.res4) == {50: 6, 101: 23}[depth]
    conv = net.res2[0].conv2
    assert (conv.groups, conv.out_channels) == (groups, groups * width)
    assert net.res3[0].conv1.stride == (1, 1) and net.res3[0].conv2.stride == (2, 2)
    assert isinstance(net.res5[2].conv3.norm, StoredStatisticsBatchNorm2d)
    assert cfg.MODEL.WEIGHTS == f"torchvision://{weights}"
    assert weights_url(cfg.MODEL.WEIGHTS).startswith("https://")

    epochs = {"1x": (8, 11, 12), "3x": (27, 33, 36)}[schedule]
    for iterations, epoch in zip((*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER), epochs):
        seen = iterations * cfg.SOLVER.IMS_PER_BATCH / IMAGES_PER_EPOCH
        assert abs(seen - epoch) < 0.01

    split = class_split_from_config(cfg)
    counts = {"voc2nonvoc": (20, 60), "nonvoc2voc": (60, 20), "fully_supervised": (80, 0)}
    assert (len(split.base), len(split.novel)) == counts[direction]
    is_ours = kind == "contrastmask"
    assert cfg.OUTPUT_DIR == f"output/{path.stem}"
    assert (model.roi_heads.contrastive_head is not None) == is_ours
    assert model.roi_heads.cam_on == is_ours

    text = path.read_text()
    if is_ours and schedule == "3x":
        assert f" {PUBLISHED_AP[str(depth), direction]} " in text
    else:
        assert "Not published" in text or "The paper gives no AP" in text


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Overrides that name a dataset of four built-in images."""
    folder = tmp_path_factory.mktemp("config_images") / "shapes"
    write_shapes(str(folder), ShapesParams(4, 1, 96, 0))
    name = "shapes_for_configs"
    yield [
        *("DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", "()"),
        "DATASETS.COCO_FORMAT",
        f"[['{name}', '{folder}/annotations/train_full.json', '{folder}/train']]",
    ]
    DatasetCatalog.remove(name)


def damp(model):
    """Without pre-trained weights, deep residual networks need small blocks to stay finite."""
    for block in model.backbone.bottom_up.modules():
        if hasattr(block, "conv3"):
            block.conv3.norm.weight.data.fill_(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=lambda x: x.stem)
def test_trains_two_iterations(path, images, tmp_path):
    opts = (
        "MODEL.DEVICE cpu MODEL.ROI_HEADS.NUM_CLASSES 14 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8 "
        "MODEL.ROI_HEADS.POSITIVE_FRACTION 1.0 MODEL.RPN.POST_NMS_TOPK_TRAIN 8 "
        "INPUT.MIN_SIZE_TRAIN (96,96) SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 SOLVER.STEPS () "
        f"DATALOADER.NUM_WORKERS 0 SEED 1 OUTPUT_DIR {tmp_path} SOLVER.CHECKPOINT_PERIOD 100"
    ).split()
    fully_supervised = "fully_supervised" in path.stem
    base = ["auto"] if fully_supervised else ["shapes_base"]
    opts += ["MODEL.WEIGHTS", "", "DATASETS.BASE_CLASSES", str(base)]
    cfg = load_config(str(path), [*images, *opts])

    torch.manual_seed(0)
    trainer = Trainer(cfg)
    model = trainer.model
    if isinstance(model.backbone.bottom_up, ResNet):
        damp(model)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    trainer.train()
    storage = trainer.storage.latest()
    losses = {k for k in storage if k.startswith("loss_")}
    expected = {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    if cfg.MODEL.ROI_CONTRASTIVE_HEAD.ENABLED:
        expected.add("loss_contrastive")
    if cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT > 0:
        expected.add("loss_box_supervision")
    assert losses == expected
    assert storage["loss_mask"][0] > 0
    for name, value in model.named_parameters():
        assert torch.isfinite(value).all(), name
        if not value.requires_grad:
            assert torch.equal(value, before[name]), name
    changed = {k for k, v in model.named_parameters() if not torch.equal(v, before[k])}
    for part in ("backbone", "proposal_generator", "roi_heads.box_head", "roi_heads.mask_head"):
        assert any(name.startswith(part) for name in changed), part
