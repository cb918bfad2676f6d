"""Using a trained model: masks for the boxes of whole annotation files, and explanation maps."""

from .complete_masks import complete_masks, read_masks
from .explanation_maps import adding_enhanced_maps
