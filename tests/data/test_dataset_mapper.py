import importlib.util
import random

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks

from contrastmask import add_contrastmask_config
from contrastmask.data.dataset_mapper import ContrastMaskDatasetMapper
from contrastmask.data.shapes import SHAPE_BASE_CLASSES, SHAPE_CLASSES, draw_image
from contrastmask.data.shapes import _annotation as shapes_annotation

SIZE = 96
FORMATS = ("bitmask", "polygon")
BASE_IDS = frozenset(SHAPE_CLASSES.index(name) for name in SHAPE_BASE_CLASSES)
needs_shapely = pytest.mark.skipif(
    importlib.util.find_spec("shapely") is None, reason="Detectron2 crops polygons with shapely"
)


@pytest.fixture(scope="module")
def image_file(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("mapper") / "image.png")
    cv2.imwrite(path, draw_image(SIZE, 0)[0])
    return path


def _box(x, y, w, h, category=0, **more):
    """One annotation in Detectron2's format."""
    return {
        "bbox": [x, y, w, h],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
        "iscrowd": 0,
        **more,
    }


def _triangle(x, y, w, h):
    return [[float(x), float(y), float(x + w), float(y), float(x + w), float(y + h)]]


def _rle(x, y, w, h, size=(SIZE, SIZE)):
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return mask_util.encode(mask)


def _dataset_dict(image_file, annotations):
    return {
        "file_name": image_file,
        "image_id": 1,
        "height": SIZE,
        "width": SIZE,
        "annotations": annotations,
    }


def _mapper(mask_format="bitmask", mask_classes=None, augmentations=(), **kwargs):
    return ContrastMaskDatasetMapper(
        is_train=True,
        augmentations=list(augmentations),
        image_format="BGR",
        use_instance_mask=True,
        instance_mask_format=mask_format,
        mask_classes=mask_classes,
        **kwargs,
    )


def _crop_mapper(mask_format, x, y, w, h):
    crop = T.CropTransform(x, y, w, h)
    return _mapper(mask_format, augmentations=[crop], recompute_boxes=True)


def _bitmasks(instances):
    """Bool (N, H, W) masks, whichever format they are in."""
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
    return masks.tensor


@pytest.mark.parametrize("mask_format", FORMATS)
@pytest.mark.parametrize("masked_first", [True, False])
def test_masks_and_boxes_mixed(image_file, mask_format, masked_first):
    annotations = [
        _box(10, 10, 20, 20, 0, segmentation=_triangle(10, 10, 20, 20)),
        _box(40, 10, 20, 20, 1),
        _box(10, 50, 30, 20, 2, segmentation=[]),
        _box(50, 50, 30, 20, 3, segmentation=None),
        _box(5, 5, 8, 8, 4, segmentation=[[1.0, 2.0, 3.0, 4.0]]),
    ]
    if not masked_first:
        annotations.reverse()
    out = _mapper(mask_format)(_dataset_dict(image_file, annotations))["instances"]
    assert out.gt_has_mask.dtype == torch.bool
    assert out.gt_classes.tolist() == [a["category_id"] for a in annotations]
    assert out.gt_has_mask.tolist() == [a["category_id"] == 0 for a in annotations]
    assert isinstance(out.gt_masks, BitMasks if mask_format == "bitmask" else PolygonMasks)
    areas = _bitmasks(out).sum(dim=(1, 2))
    assert (areas[~out.gt_has_mask] == 0).all()
    assert 170 < areas[out.gt_has_mask].item() < 240
    # What training does with masks works on empty ones too.
    cropped = out.gt_masks.crop_and_resize(out.gt_boxes.tensor, 14)
    assert (cropped.flatten(1).any(dim=1) == out.gt_has_mask).all()


def test_polygons_and_both_kinds_of_rle_in_one_image(image_file):
    runs = {"size": [SIZE, SIZE], "counts": [50 * SIZE, SIZE, 45 * SIZE]}
    annotations = [
        _box(10, 10, 20, 20, segmentation=_triangle(10, 10, 20, 20)),
        _box(40, 10, 20, 10, segmentation=_rle(40, 10, 20, 10)),
        _box(50, 0, 1, SIZE, segmentation=runs),
        _box(60, 60, 9, 9),
        _box(60, 60, 9, 9, segmentation=_rle(0, 0, 0, 0)),
    ]
    out = _mapper()(_dataset_dict(image_file, annotations))["instances"]
    assert out.gt_has_mask.tolist() == [True, True, True, False, False]
    masks = out.gt_masks.tensor
    assert masks[1].sum() == masks[1, 10:20, 40:60].sum() == 200
    assert masks[2].sum() == masks[2, :, 50].sum() == SIZE


def test_rle_in_polygon_format_names_what_to_set(image_file):
    annotations = [_box(40, 10, 20, 10, id=77, segmentation=_rle(40, 10, 20, 10))]
    with pytest.raises(ValueError, match=r"Annotation 77 .*image\.png.*INPUT\.MASK_FORMAT bitmask"):
        _mapper("polygon")(_dataset_dict(image_file, annotations))
    # The mask of a class that is not learned from does not matter.
    out = _mapper("polygon", frozenset({5}))(_dataset_dict(image_file, annotations))["instances"]
    assert out.gt_has_mask.tolist() == [False]


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ("x", "segmentation is a str"),
        ([1.0, 2.0, 3.0], "list of lists"),
        (_rle(0, 0, 5, 5, size=(50, 60)), r"size of its RLE is \(50, 60\)"),
        ({"counts": "abc"}, "needs 'size'"),
    ],
)
def test_bad_base_mask_is_an_error_that_names_the_image(image_file, segmentation, message):
    annotations = [_box(40, 10, 20, 10, id=5, segmentation=segmentation)]
    with pytest.raises(ValueError, match=rf"Annotation 5 of class 0 .*image\.png: .*{message}"):
        _mapper()(_dataset_dict(image_file, annotations))


@pytest.mark.parametrize("mask_format", FORMATS)
def test_masks_of_other_classes_are_never_looked_at(image_file, mask_format):
    class Untouchable:
        def __getattribute__(self, name):
            raise AssertionError(f"novel mask was used: {name}")

        __bool__ = __iter__ = __len__ = __getattribute__

    base = _box(10, 10, 20, 20, 0, segmentation=_triangle(10, 10, 20, 20))
    outputs = []
    for segmentation in (Untouchable(), "x", _triangle(0, 0, 9, 9), None):
        annotations = [base, _box(40, 40, 20, 20, 1, segmentation=segmentation)]
        mapper = _mapper(mask_format, frozenset({0}), recompute_boxes=True)
        outputs.append(mapper(_dataset_dict(image_file, annotations))["instances"])
    for out in outputs:
        assert out.gt_has_mask.tolist() == [True, False]
        assert torch.equal(out.gt_boxes.tensor, outputs[0].gt_boxes.tensor)
        assert torch.equal(_bitmasks(out), _bitmasks(outputs[0]))
    assert out.gt_boxes.tensor[1].tolist() == [40, 40, 60, 60]


@pytest.mark.parametrize("base", ["auto", "instances"])
def test_masks_of_named_novel_classes_are_never_read(image_file, base):
    annotations = [
        _box(10, 10, 40, 30, category, segmentation=_triangle(10, 10, 40, 30))
        for category in (0, 1, 2)
    ]
    dataset_dict = _dataset_dict(image_file, annotations)
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (SIZE,)
    cfg.DATASETS.TRAIN = ("mapper_pets",)
    cfg.DATASETS.BASE_CLASSES, cfg.DATASETS.NOVEL_CLASSES = [base], ["dog"]
    DatasetCatalog.register("mapper_pets", lambda: [dataset_dict])
    MetadataCatalog.get("mapper_pets").thing_classes = ["cat", "dog", "newt"]
    try:
        mapper = ContrastMaskDatasetMapper(cfg, is_train=True)
    finally:
        DatasetCatalog.remove("mapper_pets")
        MetadataCatalog.remove("mapper_pets")
    assert mapper(dataset_dict)["instances"].gt_has_mask.tolist() == [True, False, True]


def test_input_is_not_changed(image_file):
    annotations = [
        _box(10, 10, 20, 20, 0, segmentation=_triangle(10, 10, 20, 20)),
        _box(40, 10, 20, 20, 1, segmentation=_triangle(40, 10, 20, 20)),
    ]
    dataset_dict = _dataset_dict(image_file, annotations)
    mapper = _mapper("polygon", frozenset({0}), [T.ResizeTransform(SIZE, SIZE, 50, 50)])
    first = mapper(dataset_dict)["instances"]
    assert dataset_dict["annotations"][0]["segmentation"] == _triangle(10, 10, 20, 20)
    assert "segmentation" in dataset_dict["annotations"][1]
    assert torch.equal(mapper(dataset_dict)["instances"].gt_boxes.tensor, first.gt_boxes.tensor)


@pytest.mark.parametrize("mask_format", [FORMATS[0], pytest.param("polygon", marks=needs_shapely)])
def test_crop_keeps_boxes_and_masks_consistent(image_file, mask_format):
    annotations = [
        # Mask in the upper left half of its box; the crop leaves only the empty lower right half.
        _box(10, 10, 40, 40, 0, segmentation=[[10.0, 10.0, 50.0, 10.0, 10.0, 50.0]]),
        _box(10, 10, 40, 40, 1),  # box only: keeps the part inside
        _box(30, 30, 40, 40, 2, segmentation=[[30.0, 30.0, 70.0, 30.0, 30.0, 70.0]]),
        _box(0, 0, 20, 20, 3),  # outside
        _box(0, 0, 20, 20, 4, segmentation=_triangle(0, 0, 20, 20)),  # outside
    ]
    mapper = _crop_mapper(mask_format, 36, 36, 50, 50)
    out = mapper(_dataset_dict(image_file, annotations))["instances"]
    assert out.gt_classes.tolist() == [1, 2]
    assert out.gt_has_mask.tolist() == [False, True]
    assert out.gt_boxes.tensor[0].tolist() == [0, 0, 14, 14]
    # The triangle's visible part ends where its long side leaves the crop, not where its box does.
    tight = BitMasks(_bitmasks(out)[1:]).get_bounding_boxes().tensor[0]
    assert torch.allclose(out.gt_boxes.tensor[1], tight, atol=1.0)
    assert out.gt_boxes.tensor[1, 2] < 30


def test_image_that_is_not_square(tmp_path):
    height, width = 60, 90
    path = str(tmp_path / "wide.png")
    cv2.imwrite(path, np.zeros((height, width, 3), np.uint8))
    rle = _rle(64, 10, 20, 14, size=(height, width))
    annotations = [
        _box(64, 10, 20, 14, 1),
        _box(64, 10, 20, 14, 2, segmentation=rle),
        _box(62, 8, 24, 18, 3, segmentation=[[62.0, 8, 86, 8, 86, 26, 62, 26]]),
    ]
    record = {**_dataset_dict(path, annotations), "height": height, "width": width}
    mapper = _mapper(augmentations=[T.ResizeTransform(height, width, 30, 45)])
    out = mapper(record)["instances"]
    assert out.gt_has_mask.tolist() == [False, True, True]
    masks = out.gt_masks.tensor
    assert masks.shape == (3, 30, 45) and masks.sum(dim=(1, 2)).tolist() == [0, 70, 108]
    assert masks[1, 5:12, 32:42].all() and masks[2, 4:13, 31:43].all()
    assert out.gt_boxes.tensor[1].tolist() == [32, 5, 42, 12]
    turned = _box(10, 64, 14, 20, segmentation=_rle(10, 64, 14, 20, size=(width, height)))
    with pytest.raises(ValueError, match=r"RLE is \(90, 60\).*\(60, 90\)"):
        mapper({**record, "annotations": [turned]})
    assert mapper({**record, "annotations": []})["instances"].gt_masks.tensor.shape == (0, 30, 45)


def test_whole_number_boxes_and_polygons_are_not_cut(image_file):
    annotation = _box(11, 11, 40, 40, segmentation=[[11, 11, 51, 11, 51, 51]])
    mapper = _mapper("polygon", augmentations=[T.ResizeTransform(SIZE, SIZE, 72, 72)])
    out = mapper(_dataset_dict(image_file, [annotation]))["instances"]
    assert out.gt_boxes.tensor[0].tolist() == [8.25, 8.25, 38.25, 38.25]
    assert out.gt_masks.polygons[0][0].tolist() == [8.25, 8.25, 38.25, 8.25, 38.25, 38.25]


def test_a_mask_that_vanishes_by_resizing_leaves_a_box(image_file):
    annotations = [
        _box(10, 10, 40, 40, segmentation=[[10.0, 10.0, 50.0, 10.2, 50.0, 10.1]]),
        _box(10, 10, 40, 40, segmentation=_triangle(10, 10, 40, 40)),
    ]
    mapper = _mapper(augmentations=[T.ResizeTransform(SIZE, SIZE, 12, 12)])
    out = mapper(_dataset_dict(image_file, annotations))["instances"]
    assert out.gt_has_mask.tolist() == [False, True]
    assert out.gt_boxes.tensor[0].tolist() == [1.25, 1.25, 6.25, 6.25]


@pytest.mark.parametrize("mask_format", FORMATS)
@pytest.mark.parametrize("recompute_boxes", [False, True])
@pytest.mark.parametrize(
    "annotations", [[], [_box(1, 1, 9, 9, iscrowd=1, segmentation=_rle(1, 1, 9, 9))]]
)
def test_nothing_to_learn_from(image_file, mask_format, recompute_boxes, annotations):
    mapper = _mapper(mask_format, recompute_boxes=recompute_boxes)
    out = mapper(_dataset_dict(image_file, annotations))["instances"]
    assert len(out) == 0
    assert out.gt_boxes.tensor.shape == (0, 4) and out.gt_classes.dtype == torch.int64
    assert out.gt_has_mask.shape == (0,) and out.gt_has_mask.dtype == torch.bool
    assert isinstance(out.gt_masks, BitMasks if mask_format == "bitmask" else PolygonMasks)
    assert len(out.gt_masks) == 0
    if mask_format == "bitmask":
        assert out.gt_masks.tensor.shape == (0, SIZE, SIZE)


def test_without_masks(image_file):
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.MODEL.MASK_ON = False
    cfg.INPUT.CROP.ENABLED = True
    annotations = [_box(0, 0, 96, 96, 1, segmentation="x"), _box(0, 0, 96, 96, 2)]
    mapper = ContrastMaskDatasetMapper(cfg, is_train=True)
    out = mapper(_dataset_dict(image_file, annotations))["instances"]
    assert set(out.get_fields()) == {"gt_boxes", "gt_classes"} and len(out) == 2


def test_inference_has_no_instances(image_file):
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    mapper = ContrastMaskDatasetMapper(cfg, is_train=False)
    out = mapper(_dataset_dict(image_file, [_box(0, 0, 9, 9, segmentation="x")]))
    assert "instances" not in out and "annotations" not in out
    assert out["image"].dtype == torch.uint8


def _only_mask(annotation):
    return {"segmentation": annotation["segmentation"]}


def _shapes_dataset_dict(folder, number, polygons_only):
    image, objects = draw_image(SIZE, [9, 0, number])
    path = str(folder / f"{number}.png")
    cv2.imwrite(path, image)
    annotations = []
    for name, mask in objects:
        annotation = shapes_annotation(mask, with_mask=True)
        if isinstance(annotation["segmentation"], dict) and polygons_only:
            continue
        box = [float(value) for value in annotation["bbox"]]
        annotations.append(_box(*box, SHAPE_CLASSES.index(name), **_only_mask(annotation)))
    return _dataset_dict(path, annotations)


@pytest.mark.parametrize("mask_format", FORMATS)
@pytest.mark.parametrize("crop", [False, pytest.param(True, marks=needs_shapely)])
def test_same_as_detectron2_on_fully_masked_data(tmp_path, mask_format, crop):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.MIN_SIZE_TRAIN = (100, 120)
    cfg.INPUT.CROP.ENABLED = crop
    cfg.INPUT.CROP.SIZE = [0.6, 0.6]
    theirs = DatasetMapper(cfg, is_train=True)
    ours = ContrastMaskDatasetMapper(mask_classes=None, **DatasetMapper.from_config(cfg, True))
    count = 0
    for number in range(12):
        dataset_dict = _shapes_dataset_dict(tmp_path, number, mask_format == "polygon")
        outputs = []
        for mapper in (theirs, ours):
            np.random.seed(number)
            random.seed(number)
            outputs.append(mapper(dataset_dict))
        assert torch.equal(outputs[0]["image"], outputs[1]["image"])
        a, b = (output["instances"] for output in outputs)
        count += len(a)
        assert torch.equal(a.gt_boxes.tensor, b.gt_boxes.tensor)
        assert torch.equal(a.gt_classes, b.gt_classes)
        assert b.gt_has_mask.all()
        if not len(a):
            continue
        assert type(a.gt_masks) is type(b.gt_masks)
        if mask_format == "bitmask":
            assert torch.equal(a.gt_masks.tensor, b.gt_masks.tensor)
        else:
            for p, q in zip(a.gt_masks.polygons, b.gt_masks.polygons):
                assert len(p) == len(q)
                assert all(np.array_equal(x, y) for x, y in zip(p, q))
    assert count > 15
