import json

import numpy as np
import pycocotools.mask as mask_util
import pytest

from contrastmask.data import AnnotationFileError, ClassSplit
from contrastmask.inference import compare_masks

SPLIT = ClassSplit(("cat", "dog", "eel"), base=(1,), novel=(0,))


def rle(x0, x1, height=10, width=20):
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[2:6, x0:x1] = 1
    encoded = mask_util.encode(mask)
    return {"size": [height, width], "counts": encoded["counts"].decode()}


@pytest.fixture
def full_json(tmp_path):
    annotations = [
        {"id": i, "image_id": 1, "category_id": c, "bbox": [2, 2, 8, 8], "segmentation": rle(2, 10)}
        for i, c in ((1, 5), (2, 5), (3, 9), (4, 11), (5, 5))
    ]
    del annotations[4]["segmentation"]
    categories = [{"id": 11, "name": "eel"}, {"id": 5, "name": "dog"}, {"id": 9, "name": "cat"}]
    images = [{"id": 1, "file_name": "x", "height": 10, "width": 20}]
    path = tmp_path / "full.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return str(path)


def test_groups(full_json):
    masks = {1: rle(2, 10), 2: rle(2, 6), 3: rle(6, 10), 4: rle(12, 14), 5: rle(2, 10)}
    comparison = compare_masks(masks, full_json, SPLIT)
    assert comparison.ious == {
        "base": [1, 0.5],
        "novel": [0.5],
        "unused": [0],
        "all": [1, 0.5, 0.5, 0],
    }
    assert comparison.filled_box_ious["novel"] == [0.5]
    assert comparison.num_without_mask == 1
    table = comparison.format()
    assert "| base      | 2       | 0.750" in table
    assert "1 annotations have no mask" in table


def test_empty_masks_count(full_json):
    comparison = compare_masks({1: rle(2, 10)}, full_json, SPLIT, empty=[2])
    assert comparison.ious["base"] == [1, 0]
    assert comparison.filled_box_ious["base"] == [0.5, 0.5]


def test_image_of_another_size(full_json):
    with pytest.raises(AnnotationFileError, match="annotation 3"):
        compare_masks({3: rle(2, 10, width=30)}, full_json, SPLIT)
