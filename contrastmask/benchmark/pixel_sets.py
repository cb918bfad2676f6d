"""Part: pixel sets and sampling of keys."""

from ..modeling.pixel_sets import build_pixel_sets, sample_keys
from .heads import build_contrastive_head
from .made_up_rois import make_rois
from .memory import peak_memory
from .timing import compare


def run(settings):
    """
    Args:
        settings (Settings):

    Returns:
        list[dict]: one row for each number of RoIs; "growth" is the time relative to that of the
        first row, divided by the RoIs relative to those of the first row: 1 is linear.
    """
    head = build_contrastive_head(settings)

    def make(num):
        rois = make_rois(num, settings.side, settings.device)

        def call():
            sets = build_pixel_sets(*rois, **head.pixel_set_params)
            return sample_keys(sets, head.sample_fraction)

        return call

    functions = {num: make(num) for num in settings.roi_counts((32, 128, 256, 512))}
    timings = compare(functions, settings.num_repeats(50), settings.device, warmup=3)
    first = next(iter(functions))
    rows = []
    for num, timing in timings.items():
        growth = timing.median / timings[first].median / (num / first)
        memory = peak_memory(functions[num], settings.device)
        rows.append({"RoIs": num, **timing.columns(), "growth": growth, "peak MB": memory / 1e6})
    return rows
