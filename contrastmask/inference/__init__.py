"""Using a trained model: detection in image files, and masks for given boxes."""

from .compare_masks import compare_masks, read_full_file
from .complete_masks import complete_masks
from .detection import predict
from .load_model import load_model
