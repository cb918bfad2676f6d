"""The package as others install it, outside the checkout."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import contrastmask
from contrastmask.config_files import config_path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [str(path.relative_to(ROOT / "configs")) for path in ROOT.glob("configs/**/*.yaml")]
SIMILAR = "COCO/contrastmask_R_50_FPN_3x_voc2nonvoc.yaml"

# Runs in an empty folder with the installed package.
USE_PACKAGE = """
import sys
from pathlib import Path

import contrastmask
import numpy as np
import torch
from contrastmask.config_files import config_path
from detectron2.modeling import build_model

folder, version, *names = sys.argv[1:]
assert Path(contrastmask.__file__).is_relative_to(folder), contrastmask.__file__
assert contrastmask.__version__ == version
assert Path(contrastmask.__file__).with_name("py.typed").exists()
assert names
for name in names:
    path = config_path(name)
    assert Path(path).is_relative_to(folder), path
    assert contrastmask.get_config(path).MODEL.ROI_HEADS.NAME.startswith("ContrastMask")

cfg = contrastmask.get_config("quickstart.yaml", ["MODEL.DEVICE", "cpu"])
torch.save({"model": build_model(cfg).state_dict()}, "model.pth")
predictor = contrastmask.Predictor("quickstart.yaml", "model.pth", device="cpu")
assert predictor(np.zeros((48, 64, 3), np.uint8)).image_size == (48, 64)
"""


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wheel_from_the_source_archive_works_outside_the_checkout(tmp_path):
    source = tmp_path / "source"  # without what earlier builds left in the checkout
    for name in ("contrastmask", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path), cwd=source)
    (archive,) = tmp_path.glob("contrastmask-*.tar.gz")
    shutil.rmtree(source)

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--use-pep517")
    run(*pip, *options, "--target", str(tmp_path / "installed"), str(archive))
    empty = tmp_path / "empty"
    empty.mkdir()
    paths = os.environ["PYTHONPATH"].split(os.pathsep)
    paths[paths.index(str(ROOT))] = str(tmp_path / "installed")
    run(
        *(sys.executable, "-c", USE_PACKAGE, str(tmp_path), contrastmask.__version__, *CONFIGS),
        cwd=empty,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


@pytest.mark.filterwarnings("always")
def test_importing_the_package_ignores_what_users_cannot_act_on(recwarn):
    image = np.arange(6)
    image.flags.writeable = False
    torch.set_warn_always(True)
    try:
        importlib.reload(contrastmask)
        torch.meshgrid(torch.arange(2), torch.arange(3))
        torch.from_numpy(image)
    finally:
        torch.set_warn_always(False)
    assert not recwarn.list


def test_config_by_name_and_by_path(tmp_path, monkeypatch):
    assert Path(config_path(SIMILAR)).samefile(ROOT / "configs" / SIMILAR)
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text("VERSION: 2\n")
    assert config_path("quickstart.yaml") == "quickstart.yaml"  # a file comes before a name


@pytest.mark.parametrize("name", [Path(SIMILAR).stem, "COCO", "absent.yaml"])
def test_unknown_config(name):
    with pytest.raises(FileNotFoundError) as error:
        config_path(name)
    assert repr(name) in str(error.value)
    assert (SIMILAR in str(error.value)) == (name == Path(SIMILAR).stem)
