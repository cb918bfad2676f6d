"""The configs that come with the project, found by name."""

import difflib
from pathlib import Path

__all__ = ["config_path"]

# A link to configs/ in a checkout, a folder in an installed package.
_CONFIGS = (Path(__file__).parent / "configs").resolve()


def config_path(name: str) -> str:
    """
    Args:
        name: path of a config file, or a name relative to the project's ``configs`` folder, such as
            "COCO/contrastmask_R_50_FPN_3x_voc2nonvoc.yaml".

    Returns:
        Path of the file. A path that exists comes before a name, and is returned as it is.

    Raises:
        FileNotFoundError: if there is neither; it names similar configs.
    """
    if Path(name).is_file():
        return str(name)
    if (_CONFIGS / name).is_file():
        return str(_CONFIGS / name)
    known = sorted(path.relative_to(_CONFIGS).as_posix() for path in _CONFIGS.rglob("*.yaml"))
    close = difflib.get_close_matches(str(name), known)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise FileNotFoundError(f"no config file and no config of the project is named {name!r}{hint}")
