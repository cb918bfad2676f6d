"""ContrastMask for Detectron2. Importing this package registers its parts with Detectron2."""

import warnings

__version__ = "0.2.0.dev0"

# PyTorch's warnings about the code of Detectron2 and fvcore, which their users cannot act on.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # on import
    from . import modeling
    from .config import add_contrastmask_config
warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release")
warnings.filterwarnings("ignore", "The given NumPy array is not writable")
