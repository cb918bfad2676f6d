import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from contrastmask import add_contrastmask_config
from contrastmask.data.class_split import VOC_CLASSES, resolve_class_split
from contrastmask.data.supervision import class_split_from_config

COCO = tuple(MetadataCatalog.get("coco_2017_val").thing_classes)
PETS = ("cat", "dog", "hamster", "newt")
# What the paper's protocol calls voc, as contiguous COCO ids.
VOC_IDS = (0, 1, 2, 3, 4, 5, 6, 8, 14, 15, 16, 17, 18, 19, 39, 56, 57, 58, 60, 62)


def test_voc_and_nonvoc_on_coco():
    split = resolve_class_split(COCO, ["voc"])
    assert split.base == VOC_IDS
    assert set(split.base_names) == set(VOC_CLASSES)
    assert len(split.novel) == 60 and not set(split.base) & set(split.novel)
    assert split.with_role("unused") == ()
    reverse = resolve_class_split(COCO, ["nonvoc"])
    assert (reverse.base, reverse.novel) == (split.novel, split.base)
    assert resolve_class_split(COCO, ["nonvoc"], ["voc"]) == reverse


def test_names_in_any_order_and_unused_classes():
    split = resolve_class_split(PETS, ["newt", "cat"], ["dog"])
    assert (split.base, split.novel, split.with_role("unused")) == ((0, 3), (1,), (2,))
    assert [split.role(i) for i in range(4)] == ["base", "novel", "unused", "base"]
    assert split.base_names == ("cat", "newt") and split.novel_names == ("dog",)
    assert resolve_class_split(PETS, ["newt", "cat"]).novel == (1, 2)


def test_exact_class_name_wins_over_a_set():
    names = ("voc", "auto", "bikes.txt")
    assert resolve_class_split(names, ["voc"]).base == (0,)
    assert resolve_class_split(names, ["auto"]).base == (1,)
    assert resolve_class_split(names, ["bikes.txt"]).base == (2,)


def test_file_of_class_names(tmp_path):
    path = tmp_path / "base.txt"
    path.write_text("# pets\ndog\n\n  newt \n", encoding="utf-8")
    assert resolve_class_split(PETS, [str(path)]).base == (1, 3)
    with pytest.raises(ValueError, match=r"NOVEL_CLASSES.*nowhere\.txt.*No such file"):
        resolve_class_split(PETS, ["cat"], ["nowhere.txt"])


@pytest.mark.parametrize(
    "base, novel, message",
    [
        (["cat"], ["dgo"], r"DATASETS\.NOVEL_CLASSES: unknown class 'dgo'.*'dog'"),
        (["zzzz"], [], r"unknown class 'zzzz'; the classes are cat, dog"),
        ([], ["cat"], r"DATASETS\.BASE_CLASSES names no class"),
        (["nonvoc"], [], r"'nonvoc' does not fit this dataset"),
        (["shapes_base"], [], r"'shapes_base' does not fit this dataset"),
        (["auto"], [], r"'auto' needs the annotations"),
    ],
)
def test_errors_name_key_and_class(base, novel, message):
    with pytest.raises(ValueError, match=message):
        resolve_class_split(PETS, base, novel)


def test_all_base_is_allowed_and_logged(caplog):
    with caplog.at_level("INFO", logger="contrastmask"):
        split = resolve_class_split(("only_here",), ["only_here"])
    assert split.novel == ()
    assert "no novel class" in caplog.text


def test_auto_takes_the_masked_classes():
    split = resolve_class_split(PETS, ["auto"], masked_classes=["dog", "newt"])
    assert (split.base, split.novel) == ((1, 3), (0, 2))
    split = resolve_class_split(PETS, ["auto"], ["newt"], masked_classes=["dog", "newt"])
    assert (split.base, split.novel, split.with_role("unused")) == ((1,), (3,), (0, 2))
    with pytest.raises(ValueError, match="no class has a mask"):
        resolve_class_split(PETS, ["auto"], masked_classes=[])


@pytest.fixture
def pets_dataset():
    polygon = [[0.0, 0.0, 5.0, 0.0, 5.0, 5.0]]
    annotations = [
        {"category_id": 1, "segmentation": polygon},
        {"category_id": 1},
        {"category_id": 0, "segmentation": []},
        {"category_id": 2, "segmentation": polygon, "iscrowd": 1},
        {"category_id": 3, "segmentation": [[0.0, 0.0, 5.0, 0.0]]},
    ]
    DatasetCatalog.register("split_pets", lambda: [{"annotations": annotations}])
    MetadataCatalog.get("split_pets").thing_classes = list(PETS)
    yield "split_pets"
    DatasetCatalog.remove("split_pets")
    MetadataCatalog.remove("split_pets")


def test_split_from_config(pets_dataset):
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.DATASETS.TRAIN = (pets_dataset,)
    cfg.DATASETS.BASE_CLASSES = ["newt"]
    assert class_split_from_config(cfg).base == (3,)
    # Only the dog has a usable mask that is not a crowd's.
    for mode in ("auto", "instances"):
        cfg.DATASETS.BASE_CLASSES = [mode]
        assert class_split_from_config(cfg).base == (1,)
