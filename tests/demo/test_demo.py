import os
import runpy

import cv2
import pytest
import small_model

from contrastmask.inference import enhanced_maps


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    small_model.write_data(folder, num_images=3)
    opts = small_model.options(folder, "demo")
    small_model.write_weights(folder / "model.pth", opts)
    return folder, opts


@pytest.fixture
def demo(setting, tmp_path, monkeypatch):
    """Function: arguments -> exit code and names of the files written."""
    folder, opts = setting
    main = runpy.run_path(str(small_model.ROOT / "demo" / "demo.py"))["main"]
    monkeypatch.chdir(folder / "train")

    def run(*args):
        args = ["--config-file", small_model.CONFIG_FILE, *args]
        args += ["--weights", str(folder / "model.pth"), "--output", str(tmp_path / "out")]
        code = main([*args, "--score-threshold", "0", "--opts", *opts])
        return code, sorted(os.listdir(tmp_path / "out")) if (tmp_path / "out").exists() else []

    return run


def test_file_folder_and_pattern(demo, tmp_path):
    os.makedirs(tmp_path / "more" / "text.png")  # a folder is no image
    (tmp_path / "more" / "notes.txt").write_text("not an image")
    image = cv2.imread("000001.jpg")
    cv2.imwrite(str(tmp_path / "more" / "000001.png"), image)
    inputs = ["000002.jpg", str(tmp_path / "more" / "0*.png"), "*.jpg"]
    code, files = demo("--input", *inputs)
    assert code == 0
    assert files == ["000001.png", "000001_2.png", "000002.png", "000003.png"]
    drawn = cv2.imread(str(tmp_path / "out" / "000002.png"))
    assert drawn.shape == (480, 480, 3)
    code, files = demo("--input", ".")
    assert code == 0 and len(files) == 4


def test_explain(demo, tmp_path):
    code, files = demo("--input", "000001.jpg", "--explain", "--max-explained", "2")
    assert code == 0 and files == ["000001.png", "000001_explained.png"]
    assert cv2.imread(str(tmp_path / "out" / "000001_explained.png")).std() > 10


def test_enhanced_maps_only_to_explain(demo, monkeypatch):
    calls = []
    monkeypatch.setattr(enhanced_maps, "principal_maps", calls.append)
    code, files = demo("--input", "000001.jpg")
    assert code == 0 and files == ["000001.png"]
    assert not calls


@pytest.mark.parametrize("number", ["0", "-1"])
def test_number_of_explained_detections(demo, capsys, number):
    with pytest.raises(SystemExit):
        demo("--input", "000001.jpg", "--explain", "--max-explained", number)
    assert f"--max-explained: give 1 or more, not {number}" in capsys.readouterr().err


def test_unreadable_images(demo, tmp_path):
    (tmp_path / "bad.jpg").write_text("not an image")
    code, files = demo("--input", str(tmp_path / "bad.jpg"), "none.png", "000001.jpg")
    assert code == 1 and files == ["000001.png"]


def test_no_images(demo):
    code, files = demo("--input", "*.tiff")
    assert code == 1 and not files
