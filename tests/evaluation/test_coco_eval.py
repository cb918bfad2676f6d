import copy

import numpy as np
import pytest
import synthetic_coco

from contrastmask.evaluation import coco_precision
from contrastmask.evaluation.coco_eval import BACKENDS, resolve_backend

IOU_TYPES = ["bbox", "segm"]


@pytest.fixture(scope="module")
def data():
    dataset = synthetic_coco.make_dataset()
    for annotation in dataset["annotations"]:
        annotation["id"] += 1  # COCO evaluation itself goes wrong on id 0
    return dataset, synthetic_coco.make_detections(dataset)


def precision_of(data, iou_type, **kwargs):
    dataset, detections = data
    kwargs.setdefault("category_ids", synthetic_coco.CATEGORY_IDS)
    return coco_precision(dataset, detections, iou_type, **kwargs)


def test_synthetic_data_covers_the_cases(data):
    dataset, detections = data
    areas = np.array([x["area"] for x in dataset["annotations"]])
    assert min((areas < 32**2).sum(), (areas > 96**2).sum()) > 5
    assert 0 < sum(x["iscrowd"] for x in dataset["annotations"]) < len(areas)
    assert len({x["score"] for x in detections}) < len(detections)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("options", [{}, {"max_dets": 2}, {"image_ids": [3, 4, 5, 9, 11]}])
def test_backends_agree(data, iou_type, options):
    pytest.importorskip("hotcoco")
    expected = precision_of(data, iou_type, backend="pycocotools", **options)
    actual = precision_of(data, iou_type, backend="hotcoco", **options)
    assert expected.shape == (10, 101, len(synthetic_coco.CATEGORY_IDS), 4)
    assert 0.2 < expected[expected > -1].mean() < 0.95
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["pycocotools", "auto"])
def test_order_of_categories(data, backend):
    ids = synthetic_coco.CATEGORY_IDS
    precision = precision_of(data, "bbox", backend=backend)
    order = [3, 0, 5]
    shuffled = precision_of(data, "bbox", category_ids=[ids[i] for i in order], backend=backend)
    assert np.array_equal(shuffled, precision[:, :, order])


@pytest.mark.parametrize("backend", ["pycocotools", "auto"])
def test_input_is_not_changed(data, backend):
    before = copy.deepcopy(data)
    precision_of(data, "bbox", backend=backend)
    precision_of(data, "segm", backend=backend)
    assert data == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_image_ids_that_are_no_integers(data, backend):
    if backend == "hotcoco":
        pytest.importorskip("hotcoco")
    dataset, detections = copy.deepcopy(data)
    options = {"backend": backend, "image_ids": [3, 4, 5, 9, 11]}
    expected = precision_of(data, "segm", **options)
    for item in dataset["annotations"] + detections:
        item["image_id"] = f"image {item['image_id']:03d}"
    for image in dataset["images"]:
        image["id"] = f"image {image['id']:03d}"
    options["image_ids"] = [f"image {i:03d}" for i in options["image_ids"]]
    assert np.array_equal(precision_of((dataset, detections), "segm", **options), expected)


def test_bad_arguments(data):
    with pytest.raises(ValueError, match="TEST.COCO_EVAL_BACKEND.*'fastest'"):
        precision_of(data, "bbox", backend="fastest")
    with pytest.raises(ValueError, match="keypoints"):
        precision_of(data, "keypoints")
    with pytest.raises(ValueError, match="at least one detection"):
        precision_of((data[0], []), "bbox")


def test_hotcoco_not_installed(monkeypatch):
    def import_without_hotcoco(name, *args, **kwargs):
        if name == "hotcoco":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    import contrastmask.evaluation.coco_eval as module

    original = module.importlib.import_module
    monkeypatch.setattr(module.importlib, "import_module", import_without_hotcoco)
    assert resolve_backend("auto") == "pycocotools"
    with pytest.raises(ImportError, match="pip install hotcoco"):
        resolve_backend("hotcoco")
