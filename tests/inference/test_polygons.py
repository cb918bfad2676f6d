import numpy as np
import pycocotools.mask as mask_util
import pytest

from contrastmask.data.masks import to_rle
from contrastmask.inference import polygons as polygons_module
from contrastmask.inference.polygons import _join, join_polygons, mask_to_polygons, polygon_box


def drawn(polygons, mask):
    return mask_util.decode(to_rle(polygons, *mask.shape)).astype(bool)


def disk(side, radius, center):
    y, x = np.mgrid[:side, :side] + 0.5
    return (x - center) ** 2 + (y - center) ** 2 <= radius**2


def test_random_masks_come_back_to_the_pixel():
    """Parts, holes, islands in holes, pixels that touch at a corner, borders of the image."""
    rng = np.random.default_rng(0)
    num_slits = 0
    for _ in range(60):
        mask = rng.random(rng.integers(1, 20, 2)) < rng.choice([0.1, 0.5, 0.9])
        polygons, holes = mask_to_polygons(mask)
        num_slits += holes
        if mask.any():
            assert np.array_equal(drawn(polygons, mask), mask)
        else:
            assert polygons == []
    assert num_slits > 100


def test_random_masks_as_one_polygon_come_back_to_the_pixel(monkeypatch):
    monkeypatch.setattr(polygons_module, "_CORNERS_AT_A_TIME", 7)
    rng = np.random.default_rng(1)
    num_joined = 0
    for _ in range(60):
        mask = rng.random(rng.integers(2, 20, 2)) < rng.choice([0.1, 0.5, 0.9])
        mask[0, 0] = True
        parts, num_holes = mask_to_polygons(mask)
        (polygon,), num_slits = mask_to_polygons(mask, join_parts=True)
        assert np.array_equal(drawn([polygon], mask), mask)
        assert num_slits == num_holes + len(parts) - 1
        num_joined += len(parts) > 1
    assert num_joined > 40


def test_joined_polygons_keep_their_corners():
    triangle, square = [20.5, 3, 27, 4, 22, 9.25], [2, 3.5, 9, 3, 9, 12, 3, 11]
    assert join_polygons([triangle, square]) == [
        *(2, 3.5, 9, 3, 20.5, 3, 27, 4, 22, 9.25, 20.5, 3, 9, 3, 9, 12, 3, 11)
    ]


def test_corners_of_one_pixel():
    mask = np.zeros((5, 7), np.uint8)
    mask[2, 4] = 1
    for tolerance in (0, 1, 10):
        (polygon,), _ = mask_to_polygons(mask, tolerance)
        assert sorted(zip(polygon[::2], polygon[1::2])) == [(4, 2), (4, 3), (5, 2), (5, 3)]
        assert polygon_box([polygon]) == [4, 2, 1, 1]


def test_hole_is_not_filled():
    mask = disk(60, 25, 30) & ~disk(60, 10, 27)
    polygons, num_slits = mask_to_polygons(mask, 1.0)
    assert len(polygons) == num_slits == 1
    found = drawn(polygons, mask)
    assert not found[25:30, 25:30].any()
    assert (found & mask).sum() / (found | mask).sum() > 0.97


def test_slits_are_short():
    outline = np.array([[0.0, 0], [0, 10], [10, 10], [10, 0]])
    hole = np.array([[7.0, 8], [8, 8], [8, 7], [7, 7]])
    ring = [[0, 0], [0, 10], [10, 10], [8, 8], [8, 7], [7, 7], [7, 8], [8, 8], [10, 10], [10, 0]]
    assert _join(outline, hole).tolist() == ring


def test_a_tolerance_leaves_out_corners_and_no_part():
    mask = disk(60, 25, 30)
    mask[0, 0] = mask[59, 50:] = True
    sizes = []
    for tolerance in (0.0, 1.0, 3.0):
        polygons, _ = mask_to_polygons(mask, tolerance)
        assert len(polygons) == 3
        found = drawn(polygons, mask)
        assert found[0, 0] and found[59, 50:].all()
        assert (found & mask).sum() / (found | mask).sum() > 0.9
        sizes.append(sum(map(len, polygons)))
    assert sizes[0] > 2 * sizes[1] > 2 * sizes[2]


@pytest.mark.parametrize(
    "box_format, expected",
    [("xywh", [1, 2, 4, 3]), ("xyxy", [1, 2, 5, 5]), ("cxcywh", [3, 3.5, 4, 3])],
)
def test_box(box_format, expected):
    assert polygon_box([[1, 2, 3, 2, 3, 4], [2, 3, 5, 3, 5, 5]], box_format) == expected
