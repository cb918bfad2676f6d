import json

import pytest
import small_model
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

from contrastmask.engine import Trainer, trainer


@pytest.mark.parametrize("num_datasets", [1, 2])
def test_report_after_evaluation(tmp_path, num_datasets):
    small_model.write_data(tmp_path, num_images=2)
    opts = small_model.options(tmp_path, f"report_{num_datasets}")
    opts += ["TEST.REPORT", "True", "OUTPUT_DIR", str(tmp_path / "out")]
    names = [f"report_{num_datasets}"]
    if num_datasets == 2:
        files = [str(tmp_path / "annotations" / "train_full.json"), str(tmp_path / "train")]
        names.append("report_full")
        entries = [[names[0], files[0].replace("_full", ""), files[1]], [names[1], *files]]
        opts += ["DATASETS.COCO_FORMAT", str(entries), "DATASETS.TEST", str(tuple(names))]
    cfg, model = small_model.write_weights(tmp_path / "model.pth", opts)
    Trainer.test(cfg, model)
    pages = sorted(path.name for path in (tmp_path / "out").glob("*.html"))
    assert pages == (["report.html"] if num_datasets == 1 else [f"report_{n}.html" for n in names])
    for name, page in zip(names, pages):
        assert f"Evaluation on {name}" in (tmp_path / "out" / page).read_text(encoding="utf-8")
    if num_datasets == 2:  # the first has no masks of novel classes
        files = [tmp_path / "out" / f"results_{name}.json" for name in names]
        ious = [json.loads(x.read_text())["gt_box_mask"]["novel"]["IoU"] for x in files]
        assert ious[0] is None and ious[1] is not None
    off = cfg.clone()
    off.defrost()
    off.TEST.REPORT, off.OUTPUT_DIR = False, str(tmp_path / "off")
    Trainer.test(off, model)
    assert not list((tmp_path / "off").glob("*.html"))


def test_no_report_without_annotations(tmp_path, caplog, monkeypatch):
    """As of COCO's test-dev."""
    small_model.write_data(tmp_path, num_images=2)
    content = json.loads((tmp_path / "annotations" / "train.json").read_text())
    del content["annotations"]
    path = tmp_path / "images.json"
    path.write_text(json.dumps(content))
    register_coco_instances("report_test_dev", {}, str(path), str(tmp_path / "train"))
    DatasetCatalog.get("report_test_dev")  # reads names of classes
    opts = small_model.options(tmp_path, "report_train")
    opts += ["TEST.REPORT", "True", "OUTPUT_DIR", str(tmp_path / "out")]
    opts += ["DATASETS.TEST", "('report_test_dev',)"]
    cfg, model = small_model.write_weights(tmp_path / "model.pth", opts)
    monkeypatch.setattr(trainer.logger, "propagate", True)
    with caplog.at_level("INFO", logger=trainer.logger.name):
        assert Trainer.test(cfg, model) == {}
    assert "No report on report_test_dev: it has no annotations" in caplog.text
    assert not (tmp_path / "out" / "report.html").exists()
    detections = json.loads((tmp_path / "out/inference/coco_instances_results.json").read_text())
    assert len(detections) == 10
