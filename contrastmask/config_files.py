"""Finding the project's configs by name."""

import difflib
from pathlib import Path

__all__ = ["config_path"]

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def config_path(name: str) -> str:
    """
    Args:
        name: path of a config file, or a name relative to the project's ``configs`` folder, such as
            "COCO/contrastmask_R_50_FPN_3x_voc2nonvoc.yaml".

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: if there is no such file; it names similar configs.
    """
    for path in (Path(name), _CONFIGS / name):
        if path.is_file():
            return str(path)
    known = [x.relative_to(_CONFIGS).as_posix() for x in sorted(_CONFIGS.rglob("*.yaml"))]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise FileNotFoundError(f"there is no such file, and no config of this name{hint}")
