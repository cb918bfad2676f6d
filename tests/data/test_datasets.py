import importlib
import json
import os

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader

from contrastmask import add_contrastmask_config
from contrastmask.data import datasets
from contrastmask.data.checks import check_num_classes, check_supervision
from contrastmask.data.dataset_mapper import ContrastMaskDatasetMapper
from contrastmask.data.datasets import register_datasets
from contrastmask.data.shapes import (
    SHAPE_BASE_CLASSES,
    SHAPE_CLASSES,
    SHAPE_NOVEL_CLASSES,
    ShapesParams,
    write_shapes,
)


@pytest.fixture(scope="module")
def shapes_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets") / "shapes"
    write_shapes(str(root), ShapesParams(num_train=24, num_val=2, image_size=96))
    return root


@pytest.fixture
def cfg(shapes_root):
    """Config with the built-in data under other names."""
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.DATASETS.COCO_FORMAT = [
        [name, str(shapes_root / "annotations" / f"{file}.json"), str(shapes_root / folder)]
        for name, file, folder in (
            ("reg_train", "train", "train"),
            ("reg_full", "train_full", "train"),
            ("reg_val", "val", "val"),
        )
    ]
    cfg.DATASETS.TRAIN = ("reg_train",)
    cfg.DATASETS.TEST = ("reg_val",)
    cfg.DATASETS.BASE_CLASSES = ["shapes_base"]
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(SHAPE_CLASSES)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    yield cfg
    for name in ("reg_train", "reg_full", "reg_val", "reg_own"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_registered_from_the_config(cfg, shapes_root):
    register_datasets(cfg)
    register_datasets(cfg)
    metadata = MetadataCatalog.get("reg_val")
    assert metadata.json_file == str(shapes_root / "annotations" / "val.json")
    assert metadata.image_root == str(shapes_root / "val")
    assert metadata.evaluator_type == "coco"
    assert len(DatasetCatalog.get("reg_val")) == 2
    assert metadata.thing_classes == list(SHAPE_CLASSES)


def test_from_the_command_line_with_relative_paths(cfg, shapes_root, monkeypatch):
    monkeypatch.chdir(shapes_root)
    cfg.merge_from_list(["DATASETS.COCO_FORMAT", "[['reg_own', 'annotations/val.json', 'val']]"])
    register_datasets(cfg)
    monkeypatch.chdir("/")
    assert len(DatasetCatalog.get("reg_own")) == 2


def test_a_name_cannot_stand_for_two_datasets(cfg):
    register_datasets(cfg)
    cfg.DATASETS.COCO_FORMAT[0][2] = "elsewhere"
    with pytest.raises(ValueError, match=r"DATASETS\.COCO_FORMAT.*'reg_train' is taken"):
        register_datasets(cfg)
    cfg.DATASETS.COCO_FORMAT = [["coco_2017_train", "a.json", "b"]]
    with pytest.raises(ValueError, match="'coco_2017_train' is taken"):
        register_datasets(cfg)


@pytest.mark.parametrize("entry", ["a", ["a", "b", 3], ["a", "", "c"]])
def test_malformed_entries(cfg, entry):
    cfg.DATASETS.COCO_FORMAT = [entry]
    with pytest.raises(ValueError, match=r"DATASETS\.COCO_FORMAT: each entry must be \[name"):
        register_datasets(cfg)


@pytest.fixture
def register_built_in(monkeypatch):
    """Function: DETECTRON2_DATASETS -> registers the built-in names as on import."""
    names = ("shapes_train", "shapes_train_full", "shapes_val")

    def register(root):
        monkeypatch.setenv("DETECTRON2_DATASETS", root)
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        importlib.reload(datasets)

    before = os.environ.get("DETECTRON2_DATASETS", "datasets")
    yield register
    register(before)


def test_built_in_names_honour_the_environment(shapes_root, tmp_path, register_built_in):
    register_built_in(str(shapes_root.parent))
    for name, num_images, is_full in (
        ("shapes_train", 24, False),
        ("shapes_train_full", 24, True),
        ("shapes_val", 2, True),
    ):
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == list(SHAPE_CLASSES)  # known before loading
        dataset_dicts = DatasetCatalog.get(name)
        assert len(dataset_dicts) == num_images
        annotations = [a for d in dataset_dicts for a in d["annotations"]]
        assert all("segmentation" in a for a in annotations) == is_full
        assert metadata.evaluator_type == "coco" and os.path.isfile(metadata.json_file)
    register_built_in(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"val\.json.*python tools/prepare_shapes\.py"):
        DatasetCatalog.get("shapes_val")


def test_train_loader(cfg):
    register_datasets(cfg)
    mapper = ContrastMaskDatasetMapper(cfg, is_train=True)
    assert mapper.mask_classes == {SHAPE_CLASSES.index(name) for name in SHAPE_BASE_CLASSES}
    batch = next(iter(build_detection_train_loader(cfg, mapper=mapper)))
    assert len(batch) == 2
    for x in batch:
        instances = x["instances"]
        names = [SHAPE_CLASSES[i] for i in instances.gt_classes]
        assert instances.gt_has_mask.tolist() == [name in SHAPE_BASE_CLASSES for name in names]


def test_full_masks_change_nothing_when_base_is_given(cfg):
    register_datasets(cfg)
    outputs = []
    for name in ("reg_train", "reg_full"):
        cfg.DATASETS.TRAIN = (name,)
        mapper = ContrastMaskDatasetMapper(cfg, is_train=True)
        mapper.augmentations.augs = []
        outputs.append([mapper(x)["instances"] for x in DatasetCatalog.get(name)])
    for a, b in zip(*outputs):
        assert torch.equal(a.gt_has_mask, b.gt_has_mask)
        assert torch.equal(a.gt_masks.tensor, b.gt_masks.tensor)
        assert torch.equal(a.gt_boxes.tensor, b.gt_boxes.tensor)


def test_datasets_must_have_the_same_classes(cfg, shapes_root, tmp_path):
    content = json.loads((shapes_root / "annotations" / "val.json").read_text())
    content["categories"][2]["name"] = "blob"
    (tmp_path / "own.json").write_text(json.dumps(content))
    cfg.DATASETS.COCO_FORMAT += [["reg_own", str(tmp_path / "own.json"), str(shapes_root / "val")]]
    cfg.DATASETS.TEST = ("reg_val", "reg_own")
    register_datasets(cfg)
    with pytest.raises(ValueError, match="Class 2 is 'cross' in .*reg_train.* 'blob' in .*reg_own"):
        check_num_classes(cfg)


def test_supervision_table(cfg, caplog):
    register_datasets(cfg)
    cfg.DATASETS.TRAIN = ("reg_full",)
    cfg.DATASETS.NOVEL_CLASSES = [SHAPE_NOVEL_CLASSES[0]]
    with caplog.at_level("INFO", logger="contrastmask"):
        check_supervision(cfg)
    (table,) = [r.getMessage() for r in caplog.records if "Supervision in" in r.getMessage()]
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()[3:]]
    annotations = [a for d in DatasetCatalog.get("reg_full") for a in d["annotations"]]
    names = [SHAPE_CLASSES[a["category_id"]] for a in annotations]
    base = sum(name in SHAPE_BASE_CLASSES for name in names)
    novel = names.count(SHAPE_NOVEL_CLASSES[0])
    unused = len(names) - base - novel
    assert rows == [
        ["base", "8", str(base), str(base), str(base)],
        ["novel", "1", str(novel), str(novel), "0"],
        ["unused", "5", str(unused), str(unused), "0"],
    ]


def test_base_classes_without_masks_are_named(cfg, caplog):
    register_datasets(cfg)
    cfg.DATASETS.BASE_CLASSES = ["star", *SHAPE_BASE_CLASSES]
    check_supervision(cfg)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "base classes have no mask in 'reg_train'" in warning and "star" in warning


def test_rle_masks_need_the_bitmask_format(cfg):
    register_datasets(cfg)
    cfg.INPUT.MASK_FORMAT = "polygon"
    with pytest.raises(ValueError, match=r"are RLEs.*(ring|gear).*INPUT\.MASK_FORMAT bitmask"):
        check_supervision(cfg)
    cfg.DATASETS.BASE_CLASSES = ["triangle"]  # no RLE among these
    check_supervision(cfg)
