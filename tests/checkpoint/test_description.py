"""What a checkpoint says about its model, and what happens if a config says something else."""

import pytest
import small_model
import torch

from contrastmask import __version__, get_config
from contrastmask.checkpoint import (
    ContrastMaskCheckpointer,
    Description,
    model_class_split,
    model_config,
)
from contrastmask.checkpoint.description import _items
from contrastmask.data import ClassSplit

SPLIT = ClassSplit(("ant", "bee", "cat", "dog", "eel"), base=(1, 4), novel=(0, 3))
CONFIG = small_model.CONFIG_FILE


@pytest.fixture
def save(tmp_path):
    """Function: overrides of the training's config -> path of a checkpoint that describes it."""

    def save(*opts, split=SPLIT, **changes):
        cfg = get_config(CONFIG, ["MODEL.ROI_HEADS.NUM_CLASSES", "5", *opts])
        checkpointer = ContrastMaskCheckpointer(
            torch.nn.Linear(2, 3), str(tmp_path), description=Description.of(cfg, split)
        )
        checkpointer.save("model_0000007", iteration=7)
        path = tmp_path / "model_0000007.pth"
        content = torch.load(path, weights_only=True)
        content["contrastmask"].update(changes)
        torch.save(content, path)
        return str(path)

    return save


@pytest.fixture
def config_file(tmp_path):
    """Function: lines -> path of a config file that differs from the training's in them."""

    def write(*lines):
        path = tmp_path / "own.yaml"
        base = [f'_BASE_: "{CONFIG}"', "MODEL:", "  ROI_HEADS:", "    NUM_CLASSES: 5", *lines]
        path.write_text("\n".join(base) + "\n")
        return str(path)

    return write


AUTO = "DATASETS: {BASE_CLASSES: ['auto'], NOVEL_CLASSES: ['dog', 'ant']}"


def test_what_is_stored(save):
    content = torch.load(save("SEED", "5"), weights_only=True)
    assert content["iteration"] == 7 and set(content) == {"model", "iteration", "contrastmask"}
    description = content["contrastmask"]
    assert {k: v for k, v in description.items() if k != "config"} == {
        "version": __version__,
        "class_names": ["ant", "bee", "cat", "dog", "eel"],
        "base": ["bee", "eel"],
        "novel": ["ant", "dog"],
    }
    assert "SEED: 5\n" in description["config"]


def test_config_of_the_training(save):
    opts = ["SEED", "5", "INPUT.FORMAT", "BGR", "MODEL.FPN.OUT_CHANNELS", "40"]
    opts += ["DATASETS.COCO_FORMAT", "[['a', 'gone.json', 'gone']]", "DATASETS.TRAIN", "('a',)"]
    path = save(*opts)
    expected = get_config(CONFIG, ["MODEL.ROI_HEADS.NUM_CLASSES", "5", *opts])
    cfg = model_config("", ["MODEL.WEIGHTS", path])
    assert cfg.DATASETS.CLASS_NAMES == list(SPLIT.class_names)
    assert cfg.DATASETS.BASE_CLASSES == ["bee", "eel"]
    assert cfg.DATASETS.NOVEL_CLASSES == ["ant", "dog"]
    assert cfg.MODEL.WEIGHTS == path
    assert cfg.MODEL.DEVICE == ("cuda" if torch.cuda.is_available() else "cpu")
    assert model_class_split(cfg) == SPLIT
    for key in ("CLASS_NAMES", "BASE_CLASSES", "NOVEL_CLASSES"):
        cfg.DATASETS[key] = expected.DATASETS[key]
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = expected.MODEL.WEIGHTS, expected.MODEL.DEVICE
    assert dict(_items(cfg)) == dict(_items(expected))
    assert model_config("", ["SEED", "6"], weights=path).SEED == 6


def test_overridden_classes(save):
    path = save("DATASETS.NOVEL_CLASSES", "['dog', 'ant']")
    base = ["DATASETS.BASE_CLASSES", "['cat']"]
    split = model_class_split(model_config("", base, path))
    assert split.base_names == ("cat",) and split.novel_names == ("ant", "dog")
    split = model_class_split(model_config("", ["DATASETS.NOVEL_CLASSES", "['cat']"], path))
    assert split.base_names == ("bee", "eel") and split.novel_names == ("cat",)
    path = save()
    split = model_class_split(model_config("", base, path))
    assert split.base_names == ("cat",) and split.novel_names == ("ant", "bee", "dog", "eel")


def test_model_without_masks(save):
    split = ClassSplit(SPLIT.class_names, base=(), novel=(0, 1, 2, 3, 4))
    assert model_class_split(model_config("", [], save("MODEL.MASK_ON", "False", split=split))) == (
        split
    )


def test_fully_supervised(save):
    split = ClassSplit(SPLIT.class_names, base=(0, 1, 2, 3, 4), novel=())
    assert model_class_split(model_config("", [], save(split=split))) == split


def test_config_file_that_agrees(save, config_file):
    path = save("SEED", "5")
    lines = [AUTO, "SEED: 6", "SOLVER: {MAX_ITER: 9}", "INPUT: {MIN_SIZE_TEST: 77}"]
    colors = "  ROI_MASK_HEAD: {COLOR_CRF: {AT_TEST: False, TEST_WEIGHT: 2.0, TEST_BIAS: 0.1}}"
    cfg = model_config(config_file(colors, *lines), [], path)
    assert cfg.SEED == 6 and cfg.INPUT.MIN_SIZE_TEST == 77
    assert model_class_split(cfg) == SPLIT and cfg.MODEL.WEIGHTS == path


def test_config_file_without_number_of_classes(save, config_file):
    """Data of COCO_FORMAT tell the number when they are read; 5 is that of the checkpoint."""
    data = "DATASETS: {COCO_FORMAT: [[own, gone.json, gone]], TRAIN: [own], BASE_CLASSES: [auto]"
    file = config_file("    NUM_CLASSES: 0", data + ", NOVEL_CLASSES: [dog, ant]}")
    cfg = model_config(file, [], save())
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 5 and model_class_split(cfg) == SPLIT


@pytest.mark.parametrize(
    "opts, named",
    [
        (["MODEL.ROI_MASK_HEAD.NUM_CONV", "3"], ["MODEL.ROI_MASK_HEAD.NUM_CONV", "8", "3"]),
        (["MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]"], ["MODEL.PIXEL_MEAN", "127.0", "2.0"]),
        (["INPUT.FORMAT", "BGR"], ["INPUT.FORMAT", "RGB", "BGR"]),
        (["MODEL.ROI_MASK_HEAD.CAM_ON", "False"], ["MODEL.ROI_MASK_HEAD.CAM_ON"]),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[9], [32], [64], [128], [200]]"], ["ANCHOR_GEN"]),
        (["MODEL.ROI_CONTRASTIVE_HEAD.CONV_DIM", "64"], ["ROI_CONTRASTIVE_HEAD.CONV_DIM"]),
        (["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "9"], ["ROI_BOX_HEAD.POOLER_RESOLUTION"]),
    ],
)
def test_config_file_that_contradicts(save, config_file, opts, named):
    path, file = save(*opts), config_file(AUTO)
    with pytest.raises(ValueError) as error:
        model_config(file, [], path)
    for text in (path, file, *named):
        assert text in str(error.value)
    assert "SEED" not in str(error.value) and "WEIGHTS" not in str(error.value)
    # What is overridden is meant to differ, and without the file there is nothing to contradict.
    ours = dict(zip(opts[::2], opts[1::2]))
    model_config(file, [x for pair in ours.items() for x in pair], path)
    model_config("", [], path)


def test_keys_that_are_meant_to_differ(save, config_file):
    """Overrides are neither what the file says nor what the checkpoint says."""
    path = save("INPUT.FORMAT", "L", "MODEL.ROI_MASK_HEAD.NUM_CONV", "3")
    opts = ["INPUT.FORMAT", "BGR", "MODEL.ROI_MASK_HEAD.NUM_CONV", "5"]
    cfg = model_config(config_file(AUTO), opts, path)
    assert cfg.INPUT.FORMAT == "BGR" and cfg.MODEL.ROI_MASK_HEAD.NUM_CONV == 5
    novel = ["DATASETS.NOVEL_CLASSES", "['cat']"]
    split = model_class_split(model_config(config_file(AUTO), [*opts, *novel], path))
    assert split.base_names == ("bee", "eel") and split.novel_names == ("cat",)


def test_all_contradictions_are_named(save, config_file):
    path = save("INPUT.FORMAT", "BGR", "MODEL.RPN.CONV_DIMS", "[5]")
    with pytest.raises(ValueError, match=r"INPUT.FORMAT.*MODEL.RPN.CONV_DIMS"):
        model_config(config_file(AUTO), [], path)


@pytest.mark.parametrize(
    "opts",
    [
        "MODEL.FROZEN_PARTS ['backbone']",
        "MODEL.CHANNELS_LAST True",
        "MODEL.ROI_CONTRASTIVE_HEAD.LOSS_WEIGHT 0.3",
        "MODEL.ROI_CONTRASTIVE_HEAD.MAX_ROIS 9",
        "MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.WARMUP 0.1",
        "MODEL.ROI_MASK_HEAD.SELF_TRAINING.LOSS_WEIGHT 1.0",
        "MODEL.ROI_MASK_HEAD.SELF_TRAINING.START 0.4",
        "MODEL.ROI_MASK_HEAD.COLOR_CRF.AT_TEST True",
        "MODEL.ROI_MASK_HEAD.COLOR_CRF.COLOR_DISTANCE 9.0",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.3",
        "MODEL.RPN.POST_NMS_TOPK_TEST 33",
        "MODEL.BACKBONE.FREEZE_AT 1",
    ],
)
def test_training_and_thresholds_may_differ(save, config_file, opts):
    model_config(config_file(AUTO), [], save(*opts.split()))


@pytest.mark.parametrize(
    "datasets, named",
    [
        ("{BASE_CLASSES: ['bee', 'ant']}", ["DATASETS.BASE_CLASSES", "ant, eel", "NOVEL_CLASSES"]),
        ("{BASE_CLASSES: ['eel', 'bee']}", ["DATASETS.NOVEL_CLASSES", "cat"]),
        ("{BASE_CLASSES: ['owl']}", ["DATASETS.BASE_CLASSES", "owl"]),
        ("{BASE_CLASSES: ['voc']}", ["DATASETS.BASE_CLASSES", "voc"]),
        (
            "{BASE_CLASSES: ['eel', 'bee'], NOVEL_CLASSES: ['dog', 'ant'], CLASS_NAMES: ['ant']}",
            ["DATASETS.CLASS_NAMES", "bee"],
        ),
        (
            "{BASE_CLASSES: ['eel', 'bee'], NOVEL_CLASSES: ['dog', 'ant'], "
            "CLASS_NAMES: ['bee', 'cat', 'dog', 'eel', 'ant']}",  # the same in another order
            ["DATASETS.CLASS_NAMES", "ant, bee, cat, dog, eel"],
        ),
    ],
)
def test_other_classes(save, config_file, datasets, named):
    with pytest.raises(ValueError) as error:
        model_config(config_file(f"DATASETS: {datasets}"), [], save())
    for text in named:
        assert text in str(error.value)


def test_same_classes(save, config_file):
    datasets = "{BASE_CLASSES: ['eel', 'bee'], NOVEL_CLASSES: ['dog', 'ant']}"
    assert (
        model_class_split(model_config(config_file(f"DATASETS: {datasets}"), [], save())) == SPLIT
    )


def test_checkpoints_without_description(tmp_path, config_file):
    """Those of version 0.1.0 and of others: with a config file, and the classes of the data."""
    path = str(tmp_path / "old.pth")
    trainer = {"base_classes": ["ring"], "iteration": 3}
    torch.save({"model": {"weight": torch.ones(2)}, "trainer": trainer}, path)
    assert Description.read(path) is None
    with pytest.raises(ValueError, match="old.pth.* config"):
        model_config("", ["MODEL.WEIGHTS", path])
    cfg = model_config(CONFIG, ["DATASETS.BASE_CLASSES", "['star', 'ring']"], path)
    split = model_class_split(cfg)
    assert split.base_names == ("ring", "star") and len(split.class_names) == 14
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match="DATASETS.CLASS_NAMES"):
        model_class_split(cfg)


def test_training_data_of_an_old_checkpoint_is_gone(tmp_path):
    opts = ["DATASETS.COCO_FORMAT", "[['gone_data', 'gone.json', 'gone']]"]
    cfg = get_config(CONFIG, [*opts, "DATASETS.TRAIN", "('gone_data',)"])
    with pytest.raises(ValueError, match="gone.json.*DATASETS.CLASS_NAMES"):
        model_class_split(cfg)


def test_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        model_config("", [])
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        model_config(CONFIG, ["MODEL.WEIGHTS", ""])
    with pytest.raises(FileNotFoundError, match="no.pth"):
        model_config(CONFIG, ["MODEL.WEIGHTS", str(tmp_path / "no.pth")])


def test_key_of_another_version(save, caplog):
    cfg = get_config(CONFIG, ["MODEL.ROI_HEADS.NUM_CLASSES", "5", "SEED", "3"])
    text = cfg.dump().replace("SEED: 3", "SEED: 3\nFUTURE: 1")
    text = text.replace("  MASK_ON:", "  FUTURE_HEAD:\n    ON: true\n  MASK_ON:", 1)
    cfg = model_config("", [], save(config=text))
    assert cfg.SEED == 3 and "FUTURE" not in cfg and "FUTURE_HEAD" not in cfg.MODEL
    assert "MODEL.FUTURE_HEAD" in caplog.text and "MODEL.WEIGHTS" not in caplog.text


def test_damaged_description(save):
    with pytest.raises(ValueError, match="model_0000007.pth.*contrastmask"):
        model_config("", [], save(base=None))
    path = save(config="MODEL: [")
    with pytest.raises(ValueError, match="model_0000007.pth"):
        model_config("", [], path)
