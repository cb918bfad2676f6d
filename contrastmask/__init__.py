"""
ContrastMask for Detectron2. Importing this package registers its heads, and the handlers of
``torchvision://`` and ``efficientnet-lite://`` paths, with Detectron2.
"""

import logging
import warnings

__version__ = "0.2.0.dev0"

# PyTorch's warnings about the code of Detectron2 and fvcore, which their users cannot act on, and
# about a CUDA toolkit on a machine without a GPU.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # on import
    from . import checkpoint, modeling
    from .config import add_contrastmask_config, get_config
    from .predictor import Predictor
warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release")
warnings.filterwarnings("ignore", "The given NumPy array is not writable")
