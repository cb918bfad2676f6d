import os
import runpy
import shutil

import cv2
import numpy as np
import pytest
import small_model

from contrastmask.inference import explanation_maps
from contrastmask.visualization.video import Video


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    small_model.write_odd_data(folder, num_images=3)
    opts = small_model.options(folder, "demo")
    small_model.write_checkpoint(folder, opts)
    shutil.rmtree(folder / "annotations")  # of the training: nobody needs it any more
    return folder, opts


@pytest.fixture
def demo(setting, tmp_path, monkeypatch):
    """Function: arguments -> exit code and names of the files written."""
    folder, _ = setting
    main = runpy.run_path(str(small_model.ROOT / "demo" / "demo.py"))["main"]
    monkeypatch.chdir(folder / "train")

    def run(*args, weights="model_final.pth", output=True):
        weights = ["--weights", str(folder / weights)]
        output = ["--output", str(tmp_path / "out")] if output else []
        code = main([*weights, *output, "--score-threshold", "0", *args])
        return code, sorted(os.listdir(tmp_path / "out")) if (tmp_path / "out").exists() else []

    return run


def test_file_folder_and_pattern(demo, tmp_path):
    os.makedirs(tmp_path / "more" / "text.png")  # a folder is no image
    (tmp_path / "more" / "notes.txt").write_text("not an image")
    image = cv2.imread("1.png")
    cv2.imwrite(str(tmp_path / "more" / "1.jpg"), image)
    inputs = ["2.png", str(tmp_path / "more" / "1*.jpg"), "*.png"]
    code, files = demo("--input", *inputs)
    assert code == 0
    assert files == ["0.png", "1.png", "1_2.png", "2.png"]
    drawn = cv2.imread(str(tmp_path / "out" / "1.png"))
    assert drawn.shape[:2] == (300, 480) and image.shape[:2] == (40, 64)
    code, files = demo("--input", ".")
    assert code == 0 and len(files) == 4


def test_explain(demo, tmp_path):
    code, files = demo("--input", "1.png", "--explain", "--max-explained", "2")
    assert code == 0 and files == ["1.png", "1_explained.png"]
    assert cv2.imread(str(tmp_path / "out" / "1_explained.png")).std() > 10


def test_overrides(demo, tmp_path):
    """The model finds nothing; with --opts as in version 0.1.0, too."""
    override = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.1"]
    demo("--input", "0.png")
    found = cv2.imread(str(tmp_path / "out" / "0.png"))
    plain = cv2.resize(cv2.imread("0.png"), found.shape[1::-1])
    difference = [np.abs(found.astype(int) - plain).mean()]
    for args in (["--input", "0.png", "--explain"], ["--input", "0.png", "--opts"]):
        assert demo(*args, *override)[0] == 0
        found = cv2.imread(str(tmp_path / "out" / "0.png"))
        difference.append(np.abs(found.astype(int) - plain).mean())
    assert difference[1] == difference[2] < difference[0]


def test_checkpoint_without_config(demo, setting, capsys):
    _, opts = setting
    args = ["--input", "1.png"]
    code, files = demo(*args, weights="weights.pth")
    assert code == 1 and not files
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "weights.pth" in error
    opts = [*opts, "DATASETS.CLASS_NAMES", str([f"class {i}" for i in range(14)])]
    opts += ["DATASETS.BASE_CLASSES", "['class 3']"]
    args += ["--config-file", small_model.CONFIG_FILE]
    assert demo(*args, *opts, weights="weights.pth") == (0, ["1.png"])


def test_enhanced_maps_only_to_explain(demo, monkeypatch):
    calls = []
    monkeypatch.setattr(explanation_maps, "principal_maps", calls.append)
    code, files = demo("--input", "1.png")
    assert code == 0 and files == ["1.png"]
    assert not calls


@pytest.mark.parametrize("number", ["0", "-1"])
def test_number_of_explained_detections(demo, capsys, number):
    with pytest.raises(SystemExit):
        demo("--input", "1.png", "--explain", "--max-explained", number)
    assert f"--max-explained: give 1 or more, not {number}" in capsys.readouterr().err


def test_unreadable_images(demo, tmp_path):
    (tmp_path / "bad.jpg").write_text("not an image")
    code, files = demo("--input", str(tmp_path / "bad.jpg"), "none.png", "1.png")
    assert code == 1 and files == ["1.png"]


def test_no_images(demo):
    code, files = demo("--input", "*.tiff")
    assert code == 1 and not files


@pytest.fixture
def clip(tmp_path):
    """A video of 5 frames, 64 x 40, each of another gray."""
    path = str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 40))
    for level in range(0, 250, 50):
        writer.write(np.full((40, 64, 3), level, np.uint8))
    writer.release()
    return path


def frames_of(path):
    with Video.of_file(str(path)) as video:
        return video.rate, list(video)


@pytest.mark.parametrize("name", ["", "named.avi", "named.mp4"])
def test_video(demo, clip, tmp_path, name):
    """Frames without detections come back in their order, enlarged like images."""
    nothing = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.1"]
    output = ["--output", str(tmp_path / "out" / name)]
    code, files = demo("--video-input", clip, *output, *nothing)
    assert code == 0 and files == [name or "clip.mp4"]
    rate, frames = frames_of(tmp_path / "out" / files[0])
    assert rate == 10 and [x.shape for x in frames] == [(300, 480, 3)] * 5
    assert np.abs(np.array([x.mean() for x in frames]) - range(0, 250, 50)).max() < 5


def test_detections_are_drawn_in_a_video(demo, clip, tmp_path):
    assert demo("--video-input", clip)[0] == 0
    frames = frames_of(tmp_path / "out" / "clip.mp4")[1]
    assert all(x.std() > 5 for x in frames)


def test_webcam_in_a_window_until_escape(demo, clip, monkeypatch):
    shown, keys = [], [-1, -1, 27, -1]
    camera = cv2.VideoCapture(clip)
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: camera)
    monkeypatch.setattr(cv2, "imshow", lambda title, frame: shown.append((title, frame.shape)))
    monkeypatch.setattr(cv2, "waitKey", lambda delay: keys[len(shown) - 1])
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: shown.append("closed"))
    assert demo("--webcam", output=False) == (0, [])
    assert shown == [("webcam", (300, 480, 3))] * 3 + ["closed"]


@pytest.mark.parametrize(
    "args, message",
    [
        (["--video-input", "none.mp4"], "There is no video file none.mp4"),
        (["--video-input", "broken.mp4"], "broken.mp4 is no video that OpenCV can read"),
        (["--webcam"], "OpenCV cannot open camera 0"),
        (["--video-input", "{clip}", "--output", "{clip}"], "The output is the video itself"),
        (["--video-input", "{clip}", "--output", "/proc/a.avi"], "OpenCV cannot write /proc/a.avi"),
    ],
)
def test_video_errors_are_one_line(demo, clip, capfd, monkeypatch, args, message):
    with open("broken.mp4", "w") as f:
        f.write("no video " * 100)
    if "--webcam" in args:
        monkeypatch.setattr(cv2.VideoCapture, "isOpened", lambda self: False, raising=False)
    assert demo(*(x.format(clip=clip) for x in args))[0] == 1
    error = capfd.readouterr().err
    assert message in error and error.count("error: ") == 1


@pytest.mark.parametrize(
    "args", [["--input", "1.png"], ["--webcam", "--explain"], ["--webcam", "--input", "1.png"], []]
)
def test_arguments_that_do_not_go_together(demo, args):
    with pytest.raises(SystemExit):
        demo(*args, output=False)
