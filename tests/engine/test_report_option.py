import pytest
import small_model

from contrastmask.engine import Trainer


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
    off = cfg.clone()
    off.defrost()
    off.TEST.REPORT, off.OUTPUT_DIR = False, str(tmp_path / "off")
    Trainer.test(off, model)
    assert not list((tmp_path / "off").glob("*.html"))
