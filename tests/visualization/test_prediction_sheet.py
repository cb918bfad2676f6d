import cv2
import pytest
import torch

from contrastmask.visualization import prediction_sheet
from contrastmask.visualization.prediction_sheet import select_records, write_sheet


def test_select_records(split):
    base, novel = split.base[0], split.novel[0]
    both, base_only = [base, novel], [base]
    records = [
        {"image_id": i, "annotations": [{"category_id": c} for c in classes]}
        for i, classes in enumerate([base_only, both, [], both, both, base_only, both, both])
    ]
    chosen = [[x["image_id"] for x in select_records(records, split, n)] for n in (1, 3, 6, 20)]
    assert chosen[0] == [1]
    assert chosen[1] == [1, 4, 7]
    assert len(chosen[2]) == 6 and {1, 3, 4, 6, 7} < set(chosen[2])
    assert chosen[3] == list(range(8))


def test_detections_with_the_least_score_are_drawn(tmp_path, image, instances, split, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        prediction_sheet, "draw_detections", lambda image, x, split: drawn.append(len(x)) or image
    )
    cv2.imwrite(str(tmp_path / "image.png"), image)
    records = [{"file_name": str(tmp_path / "image.png"), "annotations": []}]
    instances.scores[:] = torch.tensor([0.5, 0.25])
    for threshold in (0.25, 0.3, 0.5, 0.6):
        write_sheet(str(tmp_path / "sheet.png"), records, [instances], split, threshold)
    assert drawn == [2, 1, 1, 0]


@pytest.mark.parametrize("with_cams", [True, False])
def test_sheet(tmp_path, image, instances, split, with_cams):
    cv2.imwrite(str(tmp_path / "image.png"), image)
    records = [{"file_name": str(tmp_path / "image.png"), "annotations": []}] * 2
    if not with_cams:
        instances.remove("pred_cams")
    path = tmp_path / "folder" / "sheet.png"
    detections = [instances, instances[:0]]
    write_sheet(str(path), records, detections, split)
    sheet = cv2.imread(str(path))
    assert sheet.shape[1] > sheet.shape[0] or not with_cams
    write_sheet(str(path), records, detections, split, score_threshold=0.7)
    other = cv2.imread(str(path))
    assert other.shape == sheet.shape and (other != sheet).any()
