"""The changes that let Detectron2 0.6 run on current Python, PyTorch, NumPy and Pillow.

Every change is an exact source replacement and is listed in `ADAPTATIONS` with its reason. A file
that does not hold the expected text the expected number of times stops the build: nothing is
changed by guesswork.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Tuple


class AdaptationError(RuntimeError):
    """The source to adapt is not the source that the table was written for."""


@dataclass(frozen=True)
class Replacement:
    """Replace `old` by `new` in one file, where `old` must occur exactly `count` times."""

    path: str
    old: str
    new: str
    count: int = 1


@dataclass(frozen=True)
class Adaptation:
    """Replacements that serve one purpose."""

    reason: str
    replacements: Tuple[Replacement, ...]


MISSING_OPS_PATH = "detectron2/layers/missing_ops.py"
MISSING_OPS_SOURCE = '''"""Stands in for `detectron2._C` where the C++ part is not installed."""


class MissingOps:
    """Raises a clear error as soon as one of the compiled operators is used."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(
            f"detectron2._C.{name} is needed here, but this Detectron2 was installed without its "
            "C++/CUDA part (deformable convolutions and rotated boxes need it). Install an "
            "official build of Detectron2 to use this operator."
        )
'''

_IMPORT_C = "from detectron2 import _C\n"
_IMPORT_C_OPTIONAL = """try:
    from detectron2 import _C
except ImportError:
    from detectron2.layers.missing_ops import MissingOps

    _C = MissingOps()
"""

ADAPTATIONS: Tuple[Adaptation, ...] = (
    Adaptation(
        "The C++ part is not built. Its operators (deformable convolutions, rotated boxes) become "
        "optional: importing works, using one raises an error that says what is missing. RoIAlign "
        "and NMS come from torchvision.",
        (
            Replacement("detectron2/layers/deform_conv.py", _IMPORT_C, _IMPORT_C_OPTIONAL),
            Replacement("detectron2/layers/roi_align_rotated.py", _IMPORT_C, _IMPORT_C_OPTIONAL),
            Replacement("detectron2/layers/rotated_boxes.py", _IMPORT_C, _IMPORT_C_OPTIONAL),
        ),
    ),
    Adaptation(
        "The faster COCO evaluation is in the C++ part too. Without it pycocotools evaluates, as "
        "in later versions of Detectron2.",
        (
            Replacement(
                "detectron2/evaluation/coco_evaluation.py",
                "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
                "try:\n"
                "    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
                "except ImportError:\n"
                "    COCOeval_opt = COCOeval\n",
            ),
            Replacement(
                "detectron2/evaluation/coco_evaluation.py",
                "        self._use_fast_impl = use_fast_impl\n",
                "        self._use_fast_impl = use_fast_impl and COCOeval_opt is not COCOeval\n",
            ),
        ),
    ),
    Adaptation(
        "NumPy 1.24 removed the aliases np.bool, np.float, np.int and np.str of Python's types.",
        (
            Replacement("detectron2/data/build.py", "dtype=np.int", "dtype=int", 2),
            Replacement("detectron2/data/datasets/pascal_voc.py", "dtype=np.str)", "dtype=str)"),
            Replacement(
                "detectron2/evaluation/pascal_voc_evaluation.py",
                ".astype(np.bool)",
                ".astype(bool)",
                2,
            ),
            Replacement(
                "detectron2/evaluation/sem_seg_evaluation.py", "dtype=np.int)", "dtype=int)", 2
            ),
            Replacement(
                "detectron2/evaluation/sem_seg_evaluation.py", "dtype=np.float)", "dtype=float)", 2
            ),
            Replacement(
                "detectron2/evaluation/sem_seg_evaluation.py",
                ".astype(np.float)",
                ".astype(float)",
                3,
            ),
            Replacement("detectron2/structures/masks.py", ".astype(np.bool)", ".astype(bool)", 2),
            Replacement("detectron2/structures/masks.py", "dtype=np.bool)", "dtype=bool)"),
            Replacement("detectron2/utils/visualizer.py", ".astype(np.bool)", ".astype(bool)", 3),
            Replacement("detectron2/utils/video_visualizer.py", "dtype=np.bool)", "dtype=bool)"),
        ),
    ),
    Adaptation(
        "NumPy 2 reads copy=False as 'never copy' and refuses a Pillow image.",
        (
            Replacement(
                "detectron2/layers/mask_ops.py", "np.array(mask, copy=False)", "np.asarray(mask)"
            ),
        ),
    ),
    Adaptation(
        "Pillow 10 removed the old name Image.LINEAR of Image.BILINEAR.",
        (
            Replacement(
                "detectron2/data/transforms/transform.py",
                "interp=Image.LINEAR",
                "interp=Image.BILINEAR",
            ),
        ),
    ),
    Adaptation(
        "setuptools 81 removed pkg_resources; the config files of the model zoo lie beside the "
        "module that looks for them.",
        (
            Replacement("detectron2/model_zoo/model_zoo.py", "import pkg_resources\n", ""),
            Replacement(
                "detectron2/model_zoo/model_zoo.py",
                "pkg_resources.resource_filename(\n"
                '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
                "    )",
                'os.path.join(\n        os.path.dirname(__file__), "configs", config_path\n    )',
            ),
        ),
    ),
)


def replace_exactly(text: str, replacement: Replacement) -> str:
    """Return `text` with one replacement made.

    Raises:
        AdaptationError: if the expected text does not occur exactly as often as expected.
    """
    found = text.count(replacement.old)
    if found != replacement.count:
        raise AdaptationError(
            f"{replacement.path}: expected this text {replacement.count} time(s), found it "
            f"{found} time(s):\n{replacement.old}"
        )
    return text.replace(replacement.old, replacement.new)


def adapt_source(root: Path, adaptations: Iterable[Adaptation] = ADAPTATIONS) -> int:
    """Adapt an unpacked Detectron2 source tree in place.

    Args:
        root: folder that holds the `detectron2` package.
        adaptations: what to change.

    Returns:
        The number of files changed or added.

    Raises:
        AdaptationError: if a file is missing or does not hold the expected text. No file has been
            changed in that case.
    """
    changed = {}
    for adaptation in adaptations:
        for replacement in adaptation.replacements:
            path = root / replacement.path
            if path not in changed:
                if not path.is_file():
                    raise AdaptationError(
                        f"{replacement.path}: the file is missing; it should hold:\n"
                        f"{replacement.old}"
                    )
                changed[path] = path.read_text(encoding="utf-8")
            changed[path] = replace_exactly(changed[path], replacement)
    missing_ops = root / MISSING_OPS_PATH
    if missing_ops.exists():
        raise AdaptationError(f"{MISSING_OPS_PATH}: the file exists already; it was to be added")
    changed[missing_ops] = MISSING_OPS_SOURCE
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8")
    return len(changed)
