import cv2
import made_up_coco
import numpy as np
import pytest
import torch
from contrastmask.evaluation.draw_predictions import (
    BASE_COLOR,
    NOVEL_COLOR,
    draw_cams,
    draw_detections,
    draw_ground_truth,
    predict,
    select_records,
    write_sheet,
)
from detectron2.config import get_cfg
from detectron2.structures import Boxes, BoxMode, Instances

SPLIT = made_up_coco.SPLIT
BASE, NOVEL = SPLIT.base[0], SPLIT.novel[0]
SIZE = 500, 600


def make_instances(boxes, classes, scores):
    instances = Instances(SIZE)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    instances.scores = torch.tensor(scores)
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[y0:y1, x0 : (x0 + x1) // 2] = True  # left half
    instances.pred_masks = masks
    generator = torch.Generator().manual_seed(0)
    instances.pred_cams = torch.randn(len(boxes), 7, 7, generator=generator)
    return instances


@pytest.fixture
def instances():
    return make_instances(
        [[40, 50, 240, 250], [300, 60, 560, 400]], [BASE, NOVEL], scores=[0.9, 0.6]
    )


@pytest.fixture
def image():
    return np.full((*SIZE, 3), 100, dtype=np.uint8)


def tint(color):
    """Direction in which a colour changes gray."""
    return np.sign(np.array(color) * 255 - 100)


def test_detections_have_the_colours_of_their_group(image, instances):
    drawn = draw_detections(image, instances, SPLIT).astype(int)
    change = drawn - image
    assert np.array_equal(np.sign(change[150, 90]), tint(BASE_COLOR))
    assert np.array_equal(np.sign(change[200, 350]), tint(NOVEL_COLOR))
    assert not change[200, 480].any()  # in the box, outside of the mask
    assert not change[450, 150].any()


def test_ground_truth_with_and_without_masks(image):
    polygon = [[40, 50, 240, 50, 240, 250, 40, 250]]
    common = {"bbox_mode": BoxMode.XYWH_ABS}
    record = {
        "annotations": [
            {"bbox": [300, 60, 260, 340], "category_id": NOVEL, **common},
            {"bbox": [40, 50, 200, 200], "category_id": BASE, "segmentation": polygon, **common},
            {"bbox": [0, 420, 600, 60], "category_id": BASE, "iscrowd": 1, **common},
        ]
    }
    change = draw_ground_truth(image, record, SPLIT).astype(int) - image
    assert np.array_equal(np.sign(change[150, 140]), tint(BASE_COLOR))
    assert not change[230, 430].any()  # a box without a mask
    assert np.array_equal(np.sign(change[300, 300]), tint(NOVEL_COLOR))
    assert not change[440].any()


def test_cams(image, instances):
    cams = torch.zeros(2, 7, 7)
    cams[0, :, :3] = -2
    cams[0, :, 4:] = 5
    cams[1] = 3  # constant
    instances.pred_cams = cams
    drawn = draw_cams(image, instances).astype(int)
    outside = np.ones(SIZE, dtype=bool)
    outside[50:250, 40:240] = outside[60:400, 300:560] = False
    assert (drawn[outside] == 100).all()
    low, high = drawn[150, 60], drawn[150, 230]
    assert high[0] > low[0]  # the colour map runs from blue to red
    assert np.array_equal(drawn[150, 41], low)  # as strong at the border of the box
    assert np.array_equal(drawn[150, 239], high)
    assert np.array_equal(drawn[200, 400], low)
    assert np.array_equal(draw_cams(image, instances[:0]), image)


def test_overlapping_cams_show_the_larger_value(image):
    boxes = [[40, 50, 240, 250], [140, 50, 340, 250]]
    instances = make_instances(boxes, [BASE, NOVEL], scores=[0.9, 0.6])
    ramp = torch.arange(7.0).expand(7, 7)
    instances.pred_cams = torch.stack([ramp, ramp])
    together = draw_cams(image, instances)
    # In the overlap the first CAM is at its high end, and the second at its low one.
    assert np.array_equal(
        together[100:200, 150:230], draw_cams(image, instances[:1])[100:200, 150:230]
    )


class OneBoxModel(torch.nn.Module):
    """Detects the whole image; fails if it is used as in training."""

    def forward(self, batched_inputs):
        assert not self.training and not torch.is_grad_enabled()
        (model_input,) = batched_inputs
        assert model_input["image"].shape[1:] == (250, 300)  # INPUT.MIN_SIZE_TEST
        instances = Instances((model_input["height"], model_input["width"]))
        instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, *SIZE[::-1]]]))
        return [{"instances": instances}]


def test_predict(tmp_path, image):
    cv2.imwrite(str(tmp_path / "image.png"), image)
    record = {"file_name": str(tmp_path / "image.png"), "annotations": [{"category_id": BASE}]}
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 250
    model = OneBoxModel().train()
    instances = predict(cfg, model, {**record, "height": SIZE[0], "width": SIZE[1]})
    assert instances.image_size == SIZE and len(instances) == 1
    assert model.training
    assert record["annotations"] == [{"category_id": BASE}]


def test_select_records():
    both, base_only = [BASE, NOVEL], [BASE]
    records = [
        {"image_id": i, "annotations": [{"category_id": c} for c in classes]}
        for i, classes in enumerate([base_only, both, [], both, both, base_only, both, both])
    ]
    chosen = [[x["image_id"] for x in select_records(records, SPLIT, n)] for n in (1, 3, 6, 20)]
    assert chosen[0] == [1]
    assert chosen[1] == [1, 4, 7]
    assert len(chosen[2]) == 6 and {1, 3, 4, 6, 7} < set(chosen[2])
    assert chosen[3] == list(range(8))


@pytest.mark.parametrize("with_cams", [True, False])
def test_sheet(tmp_path, image, instances, with_cams):
    cv2.imwrite(str(tmp_path / "image.png"), image)
    records = [{"file_name": str(tmp_path / "image.png"), "annotations": []}] * 2
    if not with_cams:
        instances.remove("pred_cams")
    path = tmp_path / "folder" / "sheet.png"
    detections = [instances, instances[:0]]
    write_sheet(str(path), records, detections, SPLIT)
    sheet = cv2.imread(str(path))
    assert sheet.shape[1] > sheet.shape[0] or not with_cams
    write_sheet(str(path), records, detections, SPLIT, score_threshold=0.7)
    other = cv2.imread(str(path))
    assert other.shape == sheet.shape and (other != sheet).any()
