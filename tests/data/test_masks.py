"""The forms of a segmentation, and which of them cover a pixel."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from contrastmask.data.masks import (
    SegmentationError,
    check_polygons,
    compressed_rle,
    has_hole,
    has_usable_mask,
    parse_number,
    parse_polygons,
    parse_segmentation,
    rle_run_lengths,
    usable_segmentation,
)

TRIANGLE = [2.0, 3.0, 12.0, 3.0, 12.0, 10.5]
SQUARE = [3, 3, 9, 3, 9, 8, 3, 8]
PAIRS = [[2.0, 3.0], [12.0, 3.0], [12.0, 10.5]]
RUNS = {"size": [6, 4], "counts": [7, 3, 14]}
NAN = float("nan")


@pytest.mark.parametrize(
    "given, polygons, repair",
    [
        ([TRIANGLE, SQUARE], [TRIANGLE, SQUARE], None),
        (TRIANGLE, [TRIANGLE], "flat list"),
        (PAIRS, [TRIANGLE], "pairs"),
        ([PAIRS, SQUARE], [TRIANGLE, SQUARE], "pairs"),
        ([PAIRS, [[3, 3], [9, 3], [9, 8], [3, 8]]], [TRIANGLE, SQUARE], "pairs"),
        ([[point] for point in PAIRS], [TRIANGLE], "pairs"),  # a contour of OpenCV
        ([[[point] for point in PAIRS], SQUARE], [TRIANGLE, SQUARE], "pairs"),
        ([[str(x) for x in TRIANGLE]], [TRIANGLE], "as text"),
        ([["2", 3, " 12.0 ", 3, 12, "1.05e1"]], [TRIANGLE], "as text"),
        (str([TRIANGLE, SQUARE]), [TRIANGLE, SQUARE], "written as text"),
        ([[], TRIANGLE, None], [TRIANGLE], None),
        ([[1, 2, 3, 4], SQUARE], [[1, 2, 3, 4], SQUARE], None),
    ],
)
def test_forms_of_polygons(given, polygons, repair):
    mask, repairs = parse_segmentation(given)
    assert mask == polygons
    assert (repair is None) == (not repairs) and all(repair in x for x in repairs)


@pytest.mark.parametrize("nothing", [None, [], {}, "", NAN, [[]], [[], [None]], "[]", "null"])
def test_nothing(nothing):
    assert parse_segmentation(nothing).mask is None


@pytest.mark.parametrize(
    "given, repair",
    [
        (RUNS, None),
        ([RUNS], "in a list"),
        ({"size": [6, 4], "counts": ["7", 3.0, 14]}, "as text"),
        ({"size": [6.0, 4], "counts": [7, 3, 14]}, "floats"),
        ({"size": ["6", "4"], "counts": [7, 3, 14]}, "as text"),
        ({"size": None, "counts": [7, 3, 14]}, "without size"),
        ({"counts": [7, 3, 14]}, "without size"),
        ("compressed", None),
        ("bytes", "text of bytes"),
    ],
)
def test_forms_of_rle(given, repair):
    counts = mask_util.frPyObjects(RUNS, 6, 4)["counts"]
    if given == "compressed":
        given = {"size": [6, 4], "counts": counts.decode()}
    elif given == "bytes":
        given = {"size": [6, 4], "counts": str(counts)}
        assert given["counts"].startswith("b'")
    mask, repairs = parse_segmentation(given)
    assert rle_run_lengths(compressed_rle(mask, 6, 4)).tolist() == RUNS["counts"]
    assert (repair is None) == (not repairs) and all(repair in x for x in repairs)


def test_several_rles_are_one_mask():
    other = {"size": [6, 4], "counts": [20, 1, 3]}
    mask, repairs = parse_segmentation([RUNS, other])
    expected = mask_util.decode(mask_util.frPyObjects([RUNS, other], 6, 4)).any(axis=2)
    assert np.array_equal(mask_util.decode(compressed_rle(mask, 6, 4)), expected)
    assert repairs


@pytest.mark.parametrize(
    "given, reason",
    [
        ("a text", "is text"),
        (True, "type bool"),
        (7, "type int"),
        ([[1, 2, 3, 4, 5, "x"]], "x"),
        ([1, 2, 3, 4, 5, None], "null"),
        ([[1, 2, 3, 4, 5, NAN]], "nan"),
        ([[1, 2, 3, 4, 5, 6, True]], "True"),
        ([["a", 2, 3, 4, 5, 6, 7]], "a"),
        ([[1.5, 2, 3, 4, 5, "6", 7]], "odd"),
        ([TRIANGLE, RUNS], "RLEs and of something else"),
        ({"all_points_x": [1, 2], "all_points_y": [3, 4]}, "all_points_x"),
        ({"size": [6, 4], "counts": 24}, "int"),
        ({"size": [6, 4], "counts": [7.5, 3, 13.5]}, "whole"),
        ({"size": [6, 4], "counts": ["x"]}, "whole"),
        ({"size": [24], "counts": [24]}, "size"),
        ({"size": [6, 4], "counts": "b'\\xff'"}, "damaged"),
    ],
)
def test_what_is_not_understood(given, reason):
    with pytest.raises(SegmentationError) as raised:
        mask = parse_segmentation(given).mask
        parse_polygons(mask)  # what begins like usual polygons is looked at a second time
    assert reason in str(raised.value) or reason == str(raised.value.value)


@pytest.mark.parametrize(
    "rle, reason",
    [
        ({"size": [4, 6], "counts": [7, 3, 14]}, r"not that of its image, \[6, 4\]"),
        ({"size": None, "counts": [7, 3, 15]}, "add up"),
        ({"size": None, "counts": [7, -3, 20]}, "add up"),
        ({"size": [6, 4], "counts": "dP"}, "damaged"),
    ],
)
def test_rle_that_does_not_fit_its_image(rle, reason):
    with pytest.raises(ValueError, match=reason):
        compressed_rle(rle, 6, 4)


def test_empty_ones_of_several_rles():
    empty = {"size": [6, 4], "counts": [24]}
    mask = compressed_rle(parse_segmentation([empty, RUNS, empty]).mask, 6, 4)
    assert mask_util.area(mask) == 3
    assert compressed_rle(parse_segmentation([empty, empty]).mask, 6, 4) is None


def test_polygons_of_other_datasets():
    """Those without three points, or with half a point, are left out."""
    kept = usable_segmentation([[1, 2, 3, 4], TRIANGLE, [*TRIANGLE, 5.0], SQUARE[:4]])
    assert [x.tolist() for x in kept] == [TRIANGLE]
    assert not has_usable_mask([[1, 2, 3, 4], [*TRIANGLE, 5.0]])
    assert usable_segmentation([[1, 2, 3, 4], [*TRIANGLE, 5.0]]) is None


def test_rle_without_foreground_is_no_mask():
    assert compressed_rle({"size": None, "counts": [24]}, 6, 4) is None
    assert compressed_rle({"size": None, "counts": [10, 0, 14]}, 6, 4) is None


@pytest.mark.parametrize(
    "given, expected",
    [(5, 5), (2.5, 2.5), ("2.5", 2.5), (" -3 ", -3), ("96.0", 96), ("1e2", 100), (".5", 0.5)],
)
def test_numbers(given, expected):
    assert parse_number(given) == expected


@pytest.mark.parametrize(
    "given", [None, True, "", "x", "1,5", "0x1", "nan", NAN, "1" * 400, [], 10**400]
)
def test_no_numbers(given):
    assert parse_number(given) is None


def test_polygons_are_judged_by_height_and_width():
    """A polygon right of a high image lies inside of a wide one."""
    numbers = np.array([20.0, 2, 26, 2, 26, 7, 20, 7] * 2 + [1.0, 2, 3, 4])
    sizes = np.array([[10, 30], [30, 10], [10, 30]])
    usable, too_long = check_polygons(numbers, np.array([8, 8, 4]), sizes)
    assert usable.tolist() == [True, False, False] and not too_long.any()


def test_outlines_that_are_too_long():
    x = np.stack([np.arange(400) % 2 * 5000.0, np.linspace(0, 9, 400)], axis=1).ravel()
    _, too_long = check_polygons(
        np.concatenate([x, [1.0, 1, 8, 1, 8, 8]]), np.array([800, 6]), np.array([[10, 12]] * 2)
    )
    assert too_long.tolist() == [True, False]
    # 50 times 5000 pixels; four for each pixel of the image are allowed beyond 100 000.
    for size, is_too_long in (((200, 250), False), ((100, 250), True), ((250, 100), True)):
        _, too_long = check_polygons(x[:100], np.array([100]), np.array([size]))
        assert too_long.tolist() == [is_too_long]


def test_run_lengths_agree_with_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = rng.integers(1, 60, 2)
        mask = np.asfortranarray(rng.random((height, width)) < rng.random(), dtype=np.uint8)
        runs = rle_run_lengths(mask_util.encode(mask))
        expanded = np.repeat(np.arange(runs.size) % 2, runs)
        assert np.array_equal(expanded, mask.ravel(order="F"))


@pytest.mark.parametrize(
    "polygons, expected",
    [
        ([SQUARE, [4, 4, 6, 4, 6, 7]], True),
        ([[4, 4, 6, 4, 6, 7], SQUARE], True),
        ([SQUARE, SQUARE], False),
        ([SQUARE, [20, 3, 25, 3, 25, 8]], False),
        ([SQUARE, [4, 4, 12, 4, 6, 7]], False),  # one corner is outside
        # Inside of the box of an L; all corners but one are in the L.
        ([[0, 0, 9, 0, 9, 4, 4, 4, 4, 9, 0, 9], [1, 1, 8, 8, 1, 8]], False),
        # Inside of the box of a triangle, not of the triangle.
        ([[0, 0, 20, 0, 20, 20], [2, 12, 6, 12, 6, 16]], False),
    ],
)
def test_holes(polygons, expected):
    assert has_hole(polygons) is expected
