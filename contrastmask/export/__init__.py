"""A trained model as files that need neither this project nor Detectron2: ONNX or TorchScript."""

from .graphs import BoxMaskGraph, DetectorGraph
from .writing import FORMATS, export_model
