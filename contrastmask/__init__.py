"""
ContrastMask for Detectron2. Importing this package registers its heads, and the handlers of
``torchvision://`` and ``efficientnet-lite://`` paths, with Detectron2.
"""

import warnings

__version__ = "0.2.0.dev0"

with warnings.catch_warnings():
    # Said by fvcore and Detectron2 when they are imported.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
    from . import checkpoint, modeling
    from .config import add_contrastmask_config, get_config
    from .predictor import Predictor
