import numpy as np
import torch
from detectron2.structures import BoxMode

from contrastmask.visualization.overlays import (
    BASE_COLOR,
    NOVEL_COLOR,
    draw_cams,
    draw_detections,
    draw_ground_truth,
)

SIZE = 500, 600


def tint(color):
    """Direction in which a color changes gray."""
    return np.sign(np.array(color) * 255 - 100)


def test_detections_have_the_colors_of_their_group(image, instances, split):
    drawn = draw_detections(image, instances, split).astype(int)
    change = drawn - image
    assert np.array_equal(np.sign(change[150, 90]), tint(BASE_COLOR))
    assert np.array_equal(np.sign(change[200, 350]), tint(NOVEL_COLOR))
    assert not change[200, 480].any()  # in the box, outside of the mask
    assert not change[450, 150].any()


def test_small_masks_lie_over_large_ones(image, make_instances, split):
    boxes = [[200, 150, 300, 350], [40, 50, 560, 450]]
    instances = make_instances(boxes, [split.base[0], split.novel[0]], scores=[0.9, 0.6])
    drawn = draw_detections(image, instances, split).astype(int)
    red, _, blue = drawn[320, 225]
    assert blue > red  # of the small mask
    red, _, blue = drawn[320, 100]
    assert red > blue
    turned = draw_detections(image, instances[[1, 0]], split)
    assert np.array_equal(turned[320, 225], drawn[320, 225])


def test_names_with_dollar_signs(image, instances, split_of_dollars):
    drawn = draw_detections(image, instances, split_of_dollars)
    assert drawn.shape == image.shape


def test_ground_truth_with_and_without_masks(image, make_instances, split):
    polygon = [[40, 50, 240, 50, 240, 250, 40, 250]]
    common = {"bbox_mode": BoxMode.XYWH_ABS}
    record = {
        "annotations": [
            {"bbox": [300, 60, 260, 340], "category_id": split.novel[0], **common},
            {
                "bbox": [40, 50, 200, 200],
                "category_id": split.base[0],
                "segmentation": polygon,
                **common,
            },
            {"bbox": [0, 420, 600, 60], "category_id": split.base[0], "iscrowd": 1, **common},
        ]
    }
    change = draw_ground_truth(image, record, split).astype(int) - image
    assert np.array_equal(np.sign(change[150, 140]), tint(BASE_COLOR))
    assert not change[230, 430].any()  # a box without a mask
    assert np.array_equal(np.sign(change[300, 300]), tint(NOVEL_COLOR))
    assert not change[440].any()


def test_cams(image, instances, split):
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
    assert high[0] > low[0]  # the color map runs from blue to red
    assert np.array_equal(drawn[150, 41], low)  # as strong at the border of the box
    assert np.array_equal(drawn[150, 239], high)
    assert np.array_equal(drawn[200, 400], low)
    assert np.array_equal(draw_cams(image, instances[:0]), image)


def test_cams_end_where_their_boxes_end(image, make_instances, split):
    """Also where the box of another one begins."""
    boxes = [[40, 50, 240, 250], [240, 50, 440, 250]]
    instances = make_instances(boxes, [split.base[0], split.novel[0]], scores=[0.9, 0.6])
    ramp = torch.arange(7.0).expand(7, 7)
    instances.pred_cams = torch.stack([ramp, ramp])
    together, second = draw_cams(image, instances), draw_cams(image, instances[1:])
    assert np.array_equal(together[50:250, 240:440], second[50:250, 240:440])


def test_overlapping_cams_show_the_larger_value(image, make_instances, split):
    boxes = [[40, 50, 240, 250], [140, 50, 340, 250]]
    instances = make_instances(boxes, [split.base[0], split.novel[0]], scores=[0.9, 0.6])
    ramp = torch.arange(7.0).expand(7, 7)
    instances.pred_cams = torch.stack([ramp, ramp])
    together = draw_cams(image, instances)
    # In the overlap the first CAM is at its high end, and the second at its low one.
    assert np.array_equal(
        together[100:200, 150:230], draw_cams(image, instances[:1])[100:200, 150:230]
    )
