"""Loading of checkpoints, also of layouts other than Detectron2's."""

from .checkpointer import ContrastMaskCheckpointer
from .layouts import read_weights
