"""Checkpoints: writing and reading them safely, and the layouts of other projects."""

from . import handlers
from .checkpointer import ContrastMaskCheckpointer
from .layouts import read_weights
from .reading import read_tensors
