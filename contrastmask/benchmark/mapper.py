"""Part: the dataset mapper against Detectron2's own, on data in which everything has a mask."""

from detectron2.data import DatasetMapper

from ..data import ContrastMaskDatasetMapper
from ..data.shapes import SHAPE_CLASSES
from ..engine import load_config
from .shapes_data import shapes_dataset
from .timing import compare, ratio


def run(settings):
    """
    Args:
        settings (Settings):

    Returns:
        list[dict]: one row for each mapper; "speed ratio" is relative to Detectron2's.
    """
    num_images, side = (4, 64) if settings.quick else (200, 192)
    with shapes_dataset(num_images, side) as (name, dataset):
        overrides = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.BASE_CLASSES", str(SHAPE_CLASSES)]
        cfg = load_config(settings.config_file, [*settings.opts, *overrides])
        mappers = {
            "Detectron2": DatasetMapper(cfg, is_train=True),
            "ContrastMask": ContrastMaskDatasetMapper(cfg, is_train=True),
        }
        functions = {k: _map_all(mapper, dataset) for k, mapper in mappers.items()}
        timings = compare(functions, settings.num_repeats(7), "cpu")
    return [
        {
            "mapper": name,
            **timing.columns(),
            "images per s": num_images / timing.median,
            "speed ratio": 1 / ratio(timing, timings["Detectron2"]),
        }
        for name, timing in timings.items()
    ]


def _map_all(mapper, dataset):
    def call():
        for image in dataset:
            mapper(image)

    return call
