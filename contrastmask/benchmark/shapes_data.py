"""Built-in images in a temporary folder, for the parts that need data."""

import contextlib
import os
import tempfile

from ..data.coco_format import load_partial_coco
from ..data.datasets import register_coco_format
from ..data.shapes import ShapesParams, write_shapes


@contextlib.contextmanager
def shapes_dataset(num_images, image_size, masks="all"):
    """
    Args:
        num_images (int): images.
        image_size (int): side of the images, in pixels.
        masks (str): "all" classes have masks, or "base" ones.

    Yields:
        tuple[str, list[dict]]: name of a registered dataset, and its content for Detectron2.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_shapes(folder, ShapesParams(num_images, 1, image_size, 0))
        file_name = "train_full.json" if masks == "all" else "train.json"
        paths = os.path.join(folder, "annotations", file_name), os.path.join(folder, "train")
        name = f"benchmark_{os.path.basename(folder)}"
        register_coco_format(name, *paths)
        yield name, load_partial_coco(*paths, name)
