"""Part: whole training steps and whole inference of ContrastMask and of Mask R-CNN."""

from typing import Callable, NamedTuple

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ..data import ContrastMaskDatasetMapper
from ..engine import load_config
from ..engine.solver import build_optimizer
from .memory import peak_memory
from .shapes_data import shapes_dataset
from .timing import compare, ratio

# Mask R-CNN is class-agnostic, with the same box head, the same RoIs and the same RoIs for the mask
# loss. Box supervision adds RoIs to the mask head in training.
_BOX_SUPERVISION = "MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT"
_MODELS = {
    "Mask R-CNN": (
        *("MODEL.ROI_CONTRASTIVE_HEAD.ENABLED", "False"),
        *("MODEL.ROI_MASK_HEAD.CAM_ON", "False"),
        *(_BOX_SUPERVISION, "0.0"),
    ),
    "ContrastMask": (_BOX_SUPERVISION, "0.0"),
    "with box supervision": (_BOX_SUPERVISION, "1.0"),
}
# Of a model of the family of configs/quickstart.yaml, for settings.quick.
_QUICK = (
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "5", "TEST.DETECTIONS_PER_IMAGE", "5"),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
    *("MODEL.ROI_CONTRASTIVE_HEAD.NUM_CONV", "1", "MODEL.ROI_CONTRASTIVE_HEAD.CONV_DIM", "32"),
)
_NUM_OPERATORS = 8  # in the profiler's table


class _Work(NamedTuple):
    """
    step (callable): one training step.
    infer (callable): inference of the same images.
    losses (callable): losses of a step as a dict of floats.
    num_detections (callable): masks that inference predicts.
    """

    step: Callable
    infer: Callable
    losses: Callable
    num_detections: Callable


def run(settings):
    """
    Random weights, so at test time the number of detections is the largest that the config allows.

    Args:
        settings (Settings):

    Returns:
        list[dict]: one row for each model, precision and stage; ratios are relative to Mask R-CNN
        in the same precision and stage. "where the time goes" is a list of (operator, share).
    """
    num_images, side = (1, 64) if settings.quick else (4, 192)
    rows = []
    with shapes_dataset(num_images, side, masks="base") as (_, dataset):
        batch = _make_batch(settings, dataset)
        for dtype in settings.dtypes:
            work = {
                model: _make_work(settings, dtype, batch, opts) for model, opts in _MODELS.items()
            }
            for stage in ("training", "inference"):
                functions = {
                    model: x.step if stage == "training" else x.infer for model, x in work.items()
                }
                warmup = 0 if settings.quick else 1
                timings = compare(functions, settings.num_repeats(7), settings.device, warmup)
                peaks = {k: peak_memory(f, settings.device) for k, f in functions.items()}
                for model, timing in timings.items():
                    is_training = stage == "training"
                    rows.append(
                        {
                            "stage": stage,
                            "dtype": dtype,
                            "model": model,
                            **timing.columns(),
                            "ratio": ratio(timing, timings["Mask R-CNN"]),
                            "images per s": num_images / timing.median,
                            "peak MB": peaks[model] / 1e6,
                            "peak ratio": peaks[model] / peaks["Mask R-CNN"],
                            "loss": sum(work[model].losses().values()) if is_training else None,
                            "masks": None if is_training else work[model].num_detections(),
                            "where the time goes": _operators(functions[model], settings.device),
                        }
                    )
    return rows


def _make_work(settings, dtype, batch, opts):
    cfg = _config(settings, opts)
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    scaler = torch.cuda.amp.GradScaler() if dtype == "float16" else None

    def forward():
        model.train()
        torch.manual_seed(2)  # the same RoIs in both models and all steps
        with EventStorage(cfg.SOLVER.MAX_ITER), settings.autocast(dtype):
            return model(batch)

    def step():
        losses = sum(forward().values())
        optimizer.zero_grad()
        if scaler is None:
            losses.backward()
            optimizer.step()
        else:
            scaler.scale(losses).backward()
            scaler.step(optimizer)
            scaler.update()

    @torch.no_grad()
    def infer():
        model.eval()
        with settings.autocast(dtype):
            return model(batch)

    return _Work(
        step,
        infer,
        lambda: {k: v.item() for k, v in forward().items()},
        lambda: sum(len(x["instances"]) for x in infer()),
    )


def _config(settings, opts=()):
    overrides = {
        "MODEL.DEVICE": settings.device,
        "MODEL.WEIGHTS": "",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
        "SOLVER.BASE_LR": "0.0",
    }
    overrides = [text for pair in overrides.items() for text in pair]
    quick = _QUICK if settings.quick else ()
    return load_config(settings.config_file, [*quick, *overrides, *opts, *settings.opts])


def _make_batch(settings, dataset):
    """list[dict]: the dataset as the training mapper gives it, the same in each call."""
    np.random.seed(0)  # of Detectron2's augmentations
    mapper = ContrastMaskDatasetMapper(_config(settings), is_train=True)
    return [mapper(image) for image in dataset]


def _operators(function, device):
    """list[tuple[str, float]]: operators that take most time themselves, with their share of it."""
    on_cuda = torch.device(device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as profiler:
        function()
    times = {}
    for event in profiler.key_averages():
        # An operator's time on a GPU is that of its kernels, which are events of their own, too.
        if event.device_type == DeviceType.CPU:
            times[event.key] = _device_time(event) if on_cuda else event.self_cpu_time_total
    total = sum(times.values())
    largest = sorted(times.items(), key=lambda x: -x[1])[:_NUM_OPERATORS]
    return [(name, time / total) for name, time in largest]


def _device_time(event):
    """Microseconds on the GPU; the attribute was renamed in PyTorch 2.4."""
    if hasattr(event, "self_device_time_total"):
        return event.self_device_time_total
    return event.self_cuda_time_total
