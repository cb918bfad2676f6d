"""Using a trained model: detection in image files, and masks for given boxes."""

from .detection import predict
from .load_model import load_model
