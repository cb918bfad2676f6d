"""Checkpoints: writing and reading them safely, other layouts, and what they say of a model."""

from . import handlers
from .checkpointer import ContrastMaskCheckpointer
from .description import DESCRIPTION_KEY, Description, model_class_split, model_config
from .layouts import read_weights
from .reading import read_tensors
