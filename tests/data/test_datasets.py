import importlib
import json
import os
import shutil

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader

from contrastmask import add_contrastmask_config
from contrastmask.data import datasets
from contrastmask.data.checks import (
    check_all,
    check_classes,
    check_supervision,
    check_test_data,
)
from contrastmask.data.dataset_mapper import ContrastMaskDatasetMapper
from contrastmask.data.datasets import (
    class_names_of,
    model_class_names,
    register_datasets,
    to_model_classes,
    training_records,
)
from contrastmask.data.shapes import (
    SHAPE_BASE_CLASSES,
    SHAPE_CLASSES,
    SHAPE_NOVEL_CLASSES,
    ShapesParams,
    write_shapes,
)
from contrastmask.data.supervision import class_split_from_config, mask_counts_of


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


def with_other_classes(shapes_root, path, keep, shift=100):
    """Write the validation file with some classes only, in another order and with other ids."""
    content = json.loads((shapes_root / "annotations" / "val.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    ids = {name: shift - 3 * keep.index(name) for name in keep}  # descending
    content["categories"] = [{"id": i, "name": name} for name, i in ids.items()]
    content["annotations"] = [
        {**x, "category_id": ids[names[x["category_id"]]]}
        for x in content["annotations"]
        if names[x["category_id"]] in ids
    ]
    path.write_text(json.dumps(content))


def test_classes_are_matched_by_name(cfg, shapes_root, tmp_path, caplog):
    keep = ["ring", "star", "triangle", "gear"]
    with_other_classes(shapes_root, tmp_path / "own.json", keep)
    cfg.DATASETS.COCO_FORMAT += [["reg_own", str(tmp_path / "own.json"), str(shapes_root / "val")]]
    cfg.DATASETS.TEST = ("reg_own",)
    register_datasets(cfg)
    with caplog.at_level("INFO", logger="contrastmask"):
        check_classes(cfg)
    (message,) = [x for x in caplog.messages if "does not have these classes" in x]
    assert "reg_own" in message and "cross" in message and "ring" not in message
    own = class_names_of("reg_own")
    assert sorted(own) == sorted(keep) and list(own) != list(keep)
    content = json.loads((tmp_path / "own.json").read_text())
    written = {x["id"]: x["name"] for x in content["categories"]}
    places = MetadataCatalog.get("reg_own").thing_dataset_id_to_contiguous_id
    assert {category_id: own[i] for category_id, i in places.items()} == written
    records = DatasetCatalog.get("reg_own")
    mapped = to_model_classes(records, own, model_class_names(cfg))
    found = [SHAPE_CLASSES[a["category_id"]] for d in mapped for a in d["annotations"]]
    assert found == [own[a["category_id"]] for d in records for a in d["annotations"]]
    full = [
        SHAPE_CLASSES[a["category_id"]]
        for d in DatasetCatalog.get("reg_val")
        for a in d["annotations"]
    ]
    assert found == [name for name in full if name in keep] and len(set(found)) > 1
    order = [*SHAPE_CLASSES[5:], *SHAPE_CLASSES[:5]]  # the same classes
    mapped = to_model_classes(DatasetCatalog.get("reg_val"), SHAPE_CLASSES, order)
    assert [order[a["category_id"]] for d in mapped for a in d["annotations"]] == full


def test_classes_of_several_training_files(cfg, shapes_root, tmp_path):
    keep = ["star", "ring"]
    with_other_classes(shapes_root, tmp_path / "own.json", keep)
    content = json.loads((tmp_path / "own.json").read_text())
    content["categories"].append({"id": 1, "name": "blob"})
    content["annotations"][0]["category_id"] = 1
    (tmp_path / "own.json").write_text(json.dumps(content))
    cfg.DATASETS.COCO_FORMAT += [["reg_own", str(tmp_path / "own.json"), str(shapes_root / "val")]]
    cfg.DATASETS.TRAIN = ("reg_own", "reg_train")
    register_datasets(cfg)
    names = model_class_names(cfg)
    assert names[:3] == ("blob", "ring", "star") and len(names) == len(SHAPE_CLASSES) + 1
    images = len(content["images"])
    records = training_records(cfg)
    assert (
        len(records)
        == sum(bool(d["annotations"]) for d in DatasetCatalog.get("reg_own"))
        + len(DatasetCatalog.get("reg_train"))
        and images == 2
    )
    second = DatasetCatalog.get("reg_train")[0]["annotations"]
    assert [names[x["category_id"]] for x in records[-24]["annotations"]] == [
        SHAPE_CLASSES[x["category_id"]] for x in second
    ]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 15
    check_classes(cfg)
    # The order can be given, and classes that it leaves out are not learned.
    cfg.DATASETS.CLASS_NAMES = ["star", "blob"]
    assert {x["category_id"] for d in training_records(cfg) for x in d["annotations"]} == {0, 1}


def test_data_without_any_class_of_the_model(cfg, shapes_root, tmp_path):
    content = json.loads((shapes_root / "annotations" / "val.json").read_text())
    for x in content["categories"]:
        x["name"] = f"my {x['name']}"
    (tmp_path / "own.json").write_text(json.dumps(content))
    cfg.DATASETS.COCO_FORMAT += [["reg_own", str(tmp_path / "own.json"), str(shapes_root / "val")]]
    cfg.DATASETS.TEST = ("reg_val", "reg_own")
    register_datasets(cfg)
    with pytest.raises(ValueError, match="reg_own.*none of the model's classes.*my arrow"):
        check_classes(cfg)


def test_auto_looks_at_the_training_data(cfg):
    cfg.DATASETS.BASE_CLASSES = ["auto"]
    register_datasets(cfg)
    assert set(class_split_from_config(cfg).base_names) == set(SHAPE_BASE_CLASSES)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("reg_val",), ("reg_train",)
    masked = {
        SHAPE_CLASSES[a["category_id"]]
        for d in DatasetCatalog.get("reg_val")
        for a in d["annotations"]
    }
    assert set(class_split_from_config(cfg).base_names) == masked != set(SHAPE_BASE_CLASSES)


def test_a_file_is_read_once(cfg, shapes_root, tmp_path, monkeypatch):
    read = []
    original = datasets.read_annotations

    def counting(path, *args, **kwargs):
        read.append(path)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(datasets, "read_annotations", counting)
    own = tmp_path / "own.json"
    own.write_bytes((shapes_root / "annotations" / "train.json").read_bytes())
    cfg.DATASETS.COCO_FORMAT = [["reg_own", str(own), str(shapes_root / "train")]]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("reg_own",)
    for _ in range(2):
        register_datasets(cfg)
        check_all(cfg)
        ContrastMaskDatasetMapper(cfg, is_train=True)
        training_records(cfg)
    assert read == [str(own)]
    # A file that has changed is read again, and its classes and counts are those of the new one.
    content = json.loads(own.read_text())
    content["categories"].append({"id": 99, "name": "blob"})
    for x in content["annotations"]:
        x.pop("segmentation", None)
    own.write_text(json.dumps(content))
    assert len(DatasetCatalog.get("reg_own")) == 24 and len(read) == 2
    assert class_names_of("reg_own")[-1] == "blob"
    assert not any(mask_counts_of("reg_own").masks)


@pytest.mark.parametrize(
    "key, value", [("CROWDS", "object"), ("BOX_FORMAT", "XYXY"), ("BOX_FORMAT", "corners")]
)
def test_unknown_ways_of_reading(cfg, key, value):
    cfg.DATASETS[key] = value
    with pytest.raises(ValueError, match=rf"DATASETS\.{key} is '{value}', choose from"):
        register_datasets(cfg)


def crowds(cfg, shapes_root, path, keep=lambda annotation: False):
    content = json.loads((shapes_root / "annotations" / "train_full.json").read_text())
    for x in content["annotations"]:
        x["iscrowd"] = int(not keep(x))
    path.write_text(json.dumps(content))
    cfg.DATASETS.COCO_FORMAT += [["reg_own", str(path), str(shapes_root / "train")]]
    return len(content["annotations"])


def test_masks_that_are_crowds_are_named_in_errors(cfg, shapes_root, tmp_path):
    number = crowds(cfg, shapes_root, tmp_path / "own.json")
    content = json.loads((tmp_path / "own.json").read_text())
    content["annotations"][0].pop("segmentation")
    (tmp_path / "own.json").write_text(json.dumps(content))
    cfg.DATASETS.TRAIN, cfg.DATASETS.BASE_CLASSES = ("reg_own",), ["auto"]
    register_datasets(cfg)
    with pytest.raises(ValueError, match=f"all {number - 1} masks .*CVAT.*V7.*CROWDS objects"):
        check_supervision(cfg)
    cfg.DATASETS.BASE_CLASSES = ["shapes_base"]
    with pytest.raises(ValueError, match=f"all {number} annotations are crowds.*CROWDS objects"):
        check_supervision(cfg)
    cfg.DATASETS.CROWDS = "objects"
    register_datasets(cfg)
    check_supervision(cfg)


def test_test_data_of_crowds(cfg, shapes_root, tmp_path, caplog):
    number = crowds(cfg, shapes_root, tmp_path / "own.json")
    cfg.DATASETS.TEST = ("reg_own",)
    register_datasets(cfg)
    with pytest.raises(ValueError, match=f"reg_own.*all {number} annotations are crowds"):
        check_test_data(cfg)
    content = json.loads((tmp_path / "own.json").read_text())
    content["annotations"].append(
        {**content["annotations"][0], "id": 10**6, "iscrowd": 0, "segmentation": []}
    )
    (tmp_path / "own.json").write_text(json.dumps(content))
    check_test_data(cfg)
    (warning,) = [x for x in caplog.messages if "Masks cannot be evaluated" in x]
    assert "reg_own" in warning and f"all {number} masks" in warning and "CROWDS" in warning


def test_boxes_only(cfg, shapes_root, tmp_path):
    content = json.loads((shapes_root / "annotations" / "val.json").read_text())
    for x in content["annotations"]:
        x.pop("segmentation")
    (tmp_path / "own.json").write_text(json.dumps(content))
    cfg.DATASETS.COCO_FORMAT += [["reg_own", str(tmp_path / "own.json"), str(shapes_root / "val")]]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("reg_own",)
    register_datasets(cfg)
    for base in (["auto"], ["shapes_base"]):
        cfg.DATASETS.BASE_CLASSES = base
        with pytest.raises(ValueError, match="no annotation in .*own.json.* MODEL.MASK_ON False"):
            check_supervision(cfg)
    cfg.MODEL.MASK_ON = False
    check_all(cfg)


def test_images_of_the_test_data_are_looked_at(cfg, shapes_root, tmp_path):
    shutil.copytree(shapes_root / "val", tmp_path / "val")
    (tmp_path / "val" / "000002.jpg").write_text("damaged")
    json_file = str(shapes_root / "annotations" / "val.json")
    cfg.DATASETS.COCO_FORMAT += [["reg_own", json_file, str(tmp_path / "val")]]
    cfg.DATASETS.TEST = ("reg_own",)
    register_datasets(cfg)
    with pytest.raises(ValueError, match=r"val\.json: image 2: .*000002\.jpg"):
        check_all(cfg)


def test_supervision_table(cfg, caplog):
    cfg.DATASETS.CLASS_NAMES = [*SHAPE_CLASSES[5:], *SHAPE_CLASSES[:5]]
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
