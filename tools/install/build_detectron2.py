#!/usr/bin/env python
"""Build a pip-installable wheel of Detectron2 0.6 without its C++ part.

Downloads the source with pip, checked against the hash in requirements/detectron2.txt, adapts it
(see detectron2_adaptations.py) and builds a pure-Python wheel. Needs no compiler. The Python that
runs this must have torch (the source's own build file imports it) and setuptools 70.1 to 80.

    python tools/install/build_detectron2.py --output build/wheels
    python -m pip install --no-deps build/wheels/detectron2-*.whl
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import List

from detectron2_adaptations import AdaptationError, adapt_source

PROJECT_ROOT = Path(__file__).resolve().parents[2]
REQUIREMENT_FILE = PROJECT_ROOT / "requirements" / "detectron2.txt"

# The local label ("+") keeps it apart from official builds in `pip list`.
BUILD_DESCRIPTION = """from setuptools import find_packages, setup

PROJECTS = {
    "detectron2.projects.point_rend": "projects/PointRend/point_rend",
    "detectron2.projects.deeplab": "projects/DeepLab/deeplab",
    "detectron2.projects.panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}

setup(
    name="detectron2",
    version="0.6+nocpp",
    description="Detectron2 0.6 without its C++/CUDA operators, adapted to current libraries",
    url="https://github.com/facebookresearch/detectron2",
    author="FAIR",
    license="Apache-2.0",
    packages=find_packages(include=["detectron2*"]) + list(PROJECTS),
    package_dir=PROJECTS,
    package_data={"detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]},
    python_requires=">=3.10",
    # As in the original, but for three of its requirements: iopath below 0.1.10 and black 21.4b2
    # (of which only the formatter for lazy configs is used) have no releases for current Pythons,
    # and "future" and "pydot" serve the Caffe2 export, which current PyTorch no longer has.
    install_requires=[
        "torch>=2.1",
        "torchvision",
        "numpy",
        "Pillow>=7.1",
        "matplotlib",
        "pycocotools>=2.0.2",
        "termcolor>=1.1",
        "yacs>=0.1.8",
        "tabulate",
        "cloudpickle",
        "tqdm>4.29.0",
        "tensorboard",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.7,<0.2",
        "omegaconf>=2.1",
        "hydra-core>=1.1",
        "black",
    ],
)
"""


def run_pip(arguments: List[str]) -> None:
    """Run pip of this Python.

    Raises:
        subprocess.CalledProcessError: if pip fails; its own words are on the terminal by then.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(command + arguments, check=True)


def download_source(folder: Path) -> Path:
    """Download the source archive and check its hash; return its path."""
    run_pip(
        ["download", "--require-hashes", "--no-deps", "--no-build-isolation", "--use-pep517"]
        + ["--no-binary", ":all:", "--dest", str(folder), "--requirement", str(REQUIREMENT_FILE)]
    )
    (archive,) = folder.glob("*.tar.gz")
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the source archive into `folder`; return the single folder that it holds."""
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):  # Python 3.10.12, 3.11.4 and later
            tar.extractall(folder, filter="data")
        else:
            tar.extractall(folder)
    (root,) = (path for path in folder.iterdir() if path.is_dir())
    return root


def build_wheel(archive: Path, output: Path) -> Path:
    """Adapt the source in `archive` and build the wheel into `output`; return the wheel's path."""
    with tempfile.TemporaryDirectory(prefix="detectron2-build-") as work:
        root = unpack(archive, Path(work))
        adapt_source(root)
        (root / "setup.py").write_text(BUILD_DESCRIPTION, encoding="utf-8")
        (root / "setup.cfg").unlink(missing_ok=True)  # settings of development tools only
        wheels = Path(work) / "wheels"
        run_pip(
            ["wheel", "--no-deps", "--no-build-isolation", "--use-pep517"]
            + ["--wheel-dir", str(wheels), str(root)]
        )
        (wheel,) = wheels.glob("*.whl")
        output.mkdir(parents=True, exist_ok=True)
        target = output / wheel.name
        target.write_bytes(wheel.read_bytes())
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the wheel")
    parser.add_argument("--archive", type=Path, help="source archive already downloaded")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="detectron2-source-") as folder:
        try:
            archive = arguments.archive or download_source(Path(folder))
            wheel = build_wheel(archive, arguments.output)
        except AdaptationError as error:
            print(f"The source of Detectron2 is not as expected.\n{error}", file=sys.stderr)
            return 1
        except subprocess.CalledProcessError as error:
            print(f"pip failed (exit status {error.returncode}), see above.", file=sys.stderr)
            return 1
    print(wheel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
