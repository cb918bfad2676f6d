import cv2
import pytest
from detectron2.structures import BoxMode

from contrastmask.visualization import class_samples
from contrastmask.visualization.class_samples import write_class_samples
from contrastmask.visualization.overlays import crop_around


def make_records(path, classes):
    annotations = [
        {
            "bbox": [40 * i, 30, 60, 50],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": c,
            **({"segmentation": [[40 * i, 30, 40 * i + 60, 30, 40 * i, 80]]} if c == 0 else {}),
        }
        for i, c in enumerate(classes)
    ]
    return [{"file_name": str(path), "annotations": annotations}]


def test_rows_are_classes(tmp_path, image, split):
    cv2.imwrite(str(tmp_path / "image.png"), image)
    path = tmp_path / "folder" / "samples.png"
    sizes = []
    for classes, limit in (([0, 0, 1], 9), ([0, 0, 1, 3], 9), ([0, 0, 1, 3], 2)):
        records = make_records(tmp_path / "image.png", classes)
        assert write_class_samples(str(path), records, split, max_classes=limit)
        sizes.append(cv2.imread(str(path)).shape[0])
    assert sizes[0] == sizes[2] < sizes[1]


@pytest.mark.parametrize("limit, shown", [(9, "abd"), (2, "bd"), (1, "d")])
def test_the_most_frequent_classes_are_shown(tmp_path, image, split, monkeypatch, limit, shown):
    """Crowds do not count."""
    titles = []

    def arrange_panels(*args, row_titles, **kwargs):
        titles.extend(row_titles)
        return arrange(*args, row_titles=row_titles, **kwargs)

    arrange = class_samples.arrange_panels
    monkeypatch.setattr(class_samples, "arrange_panels", arrange_panels)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    records = make_records(tmp_path / "image.png", [0, 1, 1, 3, 3, 3, 0, 0, 0, 2])
    for x in records[0]["annotations"][-4:]:
        x["iscrowd"] = 1
    write_class_samples(str(tmp_path / "samples.png"), records, split, max_classes=limit)
    assert "".join(title[0] for title in titles) == shown


def test_unreadable_images(tmp_path, split, caplog):
    records = make_records(tmp_path / "none.png", [0, 1])
    with caplog.at_level("WARNING", logger="contrastmask"):
        assert not write_class_samples(str(tmp_path / "samples.png"), records, split)
    assert "none.png" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "box, size, offset",
    [
        ([100, 100, 120, 140], (80, 80), (70, 80)),
        ([-30, -30, 20, 20], (45, 45), (0, 0)),
        ([590, 490, 700, 600], (65, 65), (535, 435)),
        ([560, 300, 640, 340], (160, 80), (520, 240)),
        ([700, 600, 710, 610], (1, 1), (599, 499)),
    ],
)
def test_crop(image, box, size, offset):
    (crop, mask), found = crop_around([image, image[..., 0]], box, margin=0.5)
    assert crop.shape == (*size, 3) and mask.shape == size and tuple(found) == offset
