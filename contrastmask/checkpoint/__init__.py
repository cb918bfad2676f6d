"""Loading of checkpoints, also of layouts other than Detectron2's, and what they say of a model."""

from .checkpointer import ContrastMaskCheckpointer
from .description import (
    DESCRIPTION_KEY,
    Description,
    model_class_split,
    model_config,
)
from .layouts import read_weights
