import json

import numpy as np
from annotation_samples import make_annotation, make_content

from contrastmask.data.validation_split import choose_validation_images, write_split


def records(classes_of_images):
    return [
        {"image_id": f"i{n}", "annotations": [{"category_id": c, "iscrowd": 0} for c in classes]}
        for n, classes in enumerate(classes_of_images)
    ]


def classes_in(data, ids):
    return {a["category_id"] for x in data if x["image_id"] in ids for a in x["annotations"]}


def test_every_class_is_in_both_parts_where_that_is_possible():
    rng = np.random.default_rng(3)
    common = [rng.choice(5, rng.integers(1, 4)).tolist() for _ in range(80)]
    data = records([*common, [6, 0], [6], [7, 1], [], []])
    val = choose_validation_images(data, 0.2, seed=1)
    train = {x["image_id"] for x in data} - val
    assert classes_in(data, val) == {0, 1, 2, 3, 4, 6}
    assert classes_in(data, train) == {0, 1, 2, 3, 4, 6, 7}  # of class 7 there is one image
    assert 0.15 * 80 < len(val) < 0.35 * 80
    assert not {"i83", "i84"} & val  # nothing is annotated there
    assert val == choose_validation_images(data, 0.2, seed=1)
    assert val != choose_validation_images(data, 0.2, seed=2)
    assert len(choose_validation_images(data, 0.4, seed=1)) > len(val)


def test_no_class_leaves_the_training():
    """Though the class that all images have in common is wanted for validation."""
    assert not choose_validation_images(records([[0, k] for k in range(1, 7)]), 0.5)


def test_rare_classes_choose_first():
    """So that one image serves both classes."""
    data = records([[0]] * 8 + [[0, 1]] * 2)
    for seed in range(5):
        (image_id,) = choose_validation_images(data, 0.1, seed)
        assert image_id in ("i8", "i9")


def test_crowds_are_no_objects():
    data = records([[0], [0], [1], [1]])
    for x in data[2:]:
        x["annotations"][0]["iscrowd"] = 1
    val = choose_validation_images(data, 0.5)
    assert len(val) == 1 and val < {"i0", "i1"}


def test_two_files_with_the_entries_of_one(tmp_path):
    content = make_content(
        [make_annotation(5), make_annotation(6, image_id="3"), make_annotation(4, image_id=7.0)]
    )
    content["info"] = {"version": 2}
    train, val = (tmp_path / f"{name}.json" for name in ("train", "val"))
    write_split(content, {3}, str(train), str(val))
    parts = [json.loads(x.read_text()) for x in (train, val)]
    assert [x["images"][0]["id"] for x in parts] == [7, 3]
    assert [[a["id"] for a in x["annotations"]] for x in parts] == [[5, 4], [6]]
    assert all(x["categories"] == content["categories"] for x in parts)
    assert all(x["info"] == {"version": 2} for x in parts)
    assert parts[1]["annotations"] == [content["annotations"][1]]
