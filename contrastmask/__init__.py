"""ContrastMask for Detectron2. Importing this package registers its parts with Detectron2."""

from . import modeling
from .config import add_contrastmask_config
