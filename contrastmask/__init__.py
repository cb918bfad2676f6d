"""ContrastMask for Detectron2. Importing this package registers its parts with Detectron2."""

import warnings

__version__ = "0.2.0.dev0"

with warnings.catch_warnings():
    # Said by fvcore and Detectron2 when they are imported.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
    from . import modeling
    from .config import add_contrastmask_config
