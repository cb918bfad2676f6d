"""The parts of tools/benchmark.py about models: which functions are compared."""

import os
import tempfile
from argparse import Namespace
from contextlib import contextmanager
from functools import partial
from typing import Callable, Dict, Iterator, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.layers import ShapeSpec
from detectron2.utils.events import EventStorage
from torch import nn

from contrastmask.config import default_config
from contrastmask.data import ContrastMaskDatasetMapper, register_coco_format
from contrastmask.data.shapes import ShapesParams, write_shapes
from contrastmask.engine import load_config
from contrastmask.engine.solver import build_optimizer
from contrastmask.modeling.build import build_model
from contrastmask.modeling.cam import class_activation_map, min_max_normalize, resize_map
from contrastmask.modeling.contrastive_head import ContrastiveHead
from contrastmask.modeling.pixel_sets import build_pixel_sets, sample_keys
from contrastmask.modeling.self_similarity import enhance_by_self_similarity


class Comparison(NamedTuple):
    """
    Attributes:
        labels: columns of the table that are the same for all functions.
        functions: what is measured, by name. Ratios are relative to the first. A dict that a
            function returns has further columns.
        repeats: measurements of each function, unless the user asks for another number.
        warmup: calls of each function before.
        has_memory: whether peak memory is measured as well.
    """

    labels: Dict[str, object]
    functions: Dict[str, Callable[[], object]]
    repeats: int
    warmup: int = 1
    has_memory: bool = True


def pixel_sets(args: Namespace) -> Iterator[Comparison]:
    """Pixel sets and sampling of keys: growth with the number of RoIs"""
    head = _contrastive_head(args)

    def run(rois):
        sample_keys(build_pixel_sets(*rois, **head.pixel_set_params), head.sample_fraction)

    counts = args.rois or (32, 128, 256, 512)
    yield Comparison({}, {f"{n} RoIs": partial(run, _rois(args, n)) for n in counts}, repeats=50)


def branch(args: Namespace) -> Iterator[Comparison]:
    """Contrastive branch, forward and backward, against the convolutions of its encoder alone

    In training only some RoIs are enhanced, which "1/8 enhanced" is nearer to.
    """

    def run(dtype, loss):
        with autocast(args, dtype):
            loss().backward()

    for dtype in args.dtype:
        for num in args.rois or (64,):
            losses = _branch_losses(args, num)
            functions = {name: partial(run, dtype, loss) for name, loss in losses.items()}
            yield Comparison({"dtype": dtype, "RoIs": num}, functions, repeats=5)


def _branch_losses(args, num):
    head, rois, x = _contrastive_head(args), _rois(args, num), _features(args, num, args.side)
    bare = [nn.Conv2d(c.in_channels, c.out_channels, 3, padding=1) for c in head.encoder]
    bare = nn.Sequential(*bare).to(args.device)
    encoded = head(x).detach().requires_grad_()

    def enhance(encoded):
        return enhance_by_self_similarity(encoded, args.side // 2).mean()

    def contrast(encoded):
        return sum(head.contrast(encoded, *rois)[0])

    def whole(num_enhanced):
        encoded = head(x)
        return contrast(encoded) + enhance(encoded[:num_enhanced])

    return {
        "bare convolutions": lambda: bare(x).float().sum(),
        "branch": lambda: whole(num),
        "branch, 1/8 enhanced": lambda: whole(max(num // 8, 1)),
        "of it: encoder": lambda: head(x).float().sum(),
        "of it: enhancement": lambda: enhance(encoded),
        "of it: pixel sets, projector, loss": lambda: contrast(encoded),
    }


def cam(args: Namespace) -> Iterator[Comparison]:
    """Class activation maps of RoIs: growth with the number of classes

    In training of positive RoIs, forward and backward; in inference of final detections.
    """
    num_train, num_proposals, num_detections = (4, 8, 2) if args.quick else (256, 1000, 100)
    features = _features(args, num_proposals, 7)
    positive = features[:num_train].clone().requires_grad_()
    kept = torch.randperm(num_proposals)[:num_detections].to(args.device)

    def normalized_cam(x, weights):
        classes = torch.arange(len(x), device=args.device) % len(weights)
        cam = class_activation_map(x, weights[classes])
        return min_max_normalize(resize_map(cam, args.side // 2))

    def train(weights):
        cam = normalized_cam(positive, weights)
        min_max_normalize(resize_map(cam.detach(), args.side))
        cam.sum().backward()

    @torch.no_grad()
    def infer(weights):
        normalized_cam(features[kept], weights)

    weights = {n: torch.randn(n, args.channels, device=args.device) for n in args.classes}
    for stage, function in (("training", train), ("inference", infer)):
        functions = {f"{n} classes": partial(function, x) for n, x in weights.items()}
        yield Comparison({"stage": stage}, functions, repeats=50)


def self_similarity(args: Namespace) -> Iterator[Comparison]:
    """Self-similarity, forward and backward, with the result resized for the mask head"""
    size = args.side // 2
    forms = {
        "materialized": lambda x: resize_map(_materialized(x), size),
        "fused attention": lambda x: resize_map(_fused_attention(x), size),
        "ours": lambda x: enhance_by_self_similarity(x, size),
    }

    def run(form, x):
        enhanced = form(x)
        # Not a plain sum: its gradient with respect to the similarities would almost vanish.
        torch.autograd.grad((enhanced * enhanced.detach()).sum(), x)

    for num in args.rois or (64, 256):
        x = _features(args, num, args.side).requires_grad_()
        functions = {name: partial(run, form, x) for name, form in forms.items()}
        yield Comparison({"RoIs": num}, functions, repeats=3)


def model(args: Namespace) -> Iterator[Comparison]:
    """Training step, and inference of one image after the other, against class-agnostic Mask R-CNN

    Mask R-CNN has the same heads and the same RoIs, also in the mask loss. Weights are random, so
    each image has as many detections as are asked for.
    """
    supervision = "MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT"
    plain = ["MODEL.ROI_CONTRASTIVE_HEAD.ENABLED", "False", "MODEL.ROI_MASK_HEAD.CAM_ON", "False"]
    variants = [["Mask R-CNN", *plain, supervision, "0.0"]] + (
        args.variant
        or [["ContrastMask", supervision, "0.0"], ["with box supervision", supervision, "1.0"]]
    )
    num_images, side = (1, 64) if args.quick else (4, 192)
    with _shapes(num_images, side, "train") as dataset:
        for dtype in args.dtype:
            models = {name: _Model(args, dtype, dataset, opts) for name, *opts in variants}
            steps = {name: x.step for name, x in models.items()}
            labels = {"dtype": dtype, "images": num_images}
            yield Comparison({**labels, "stage": "training"}, steps, repeats=7)
            for number in args.detections:
                functions = {name: partial(x.infer, number) for name, x in models.items()}
                yield Comparison({**labels, "stage": "inference"}, functions, repeats=7)


def mapper(args: Namespace) -> Iterator[Comparison]:
    """Dataset mapper, on images in which everything has a mask"""
    num_images, side = (4, 64) if args.quick else (200, 192)
    with _shapes(num_images, side, "train_full") as dataset:
        cfg = _config(args, dataset)
        records = DatasetCatalog.get(dataset)

        def run(mapper):
            for record in records:
                mapper(record)

        mappers = {
            "Detectron2": DatasetMapper(cfg, is_train=True),
            "ContrastMask": ContrastMaskDatasetMapper(cfg, is_train=True),
        }
        functions = {name: partial(run, x) for name, x in mappers.items()}
        yield Comparison({"images": num_images}, functions, repeats=7, has_memory=False)


# -- heads and RoIs -------------------------------------------------------------------------------


def _contrastive_head(args):
    """In training mode, with random weights; the paper's, but for channels and side."""
    cfg = default_config()
    head = cfg.MODEL.ROI_CONTRASTIVE_HEAD
    head.CONV_DIM = head.PROJECTOR_DIM = args.channels
    shape = ShapeSpec(channels=args.channels, height=args.side, width=args.side)
    return ContrastiveHead(cfg, shape).to(args.device).train()


def _rois(args, num):
    """Masks (num, H, H) bool, ellipses; has_mask (num,) bool, every second; CAMs (num, H, H)."""
    position = torch.arange(args.side) + 0.5
    center = args.side * (0.35 + 0.3 * torch.rand(num, 2, 1, 1))
    radius = args.side * (0.2 + 0.3 * torch.rand(num, 2, 1, 1))
    x = (position[None, None, :] - center[:, 0]) / radius[:, 0]
    y = (position[None, :, None] - center[:, 1]) / radius[:, 1]
    cam = min_max_normalize(resize_map(torch.rand(num, 1, 7, 7), args.side))[:, 0]
    return [x.to(args.device) for x in (x**2 + y**2 <= 1, torch.arange(num) % 2 == 0, cam)]


def _features(args, num, side):
    return torch.randn(num, args.channels, side, side).abs_().to(args.device)


def autocast(args: Namespace, dtype: str) -> torch.autocast:
    """For `dtype`, one of "float32" (which it leaves alone), "bfloat16", "float16"."""
    device_type = torch.device(args.device).type
    return torch.autocast(device_type, getattr(torch, dtype), enabled=dtype != "float32")


def _materialized(x):
    values = x.flatten(2)
    directions = F.normalize(values, dim=1)
    weights = torch.softmax(directions.transpose(1, 2) @ directions, dim=2)
    return (values @ weights.transpose(1, 2)).view_as(x)


def _fused_attention(x):
    values = x.flatten(2).transpose(1, 2)[:, None].contiguous()  # R, 1, HW, C
    directions = F.normalize(values, dim=3)
    enhanced = F.scaled_dot_product_attention(directions, directions, values, scale=1.0)
    return enhanced[:, 0].transpose(1, 2).reshape(x.shape)


# -- whole models and data ------------------------------------------------------------------------

MODEL_QUICK = (
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "5", "MODEL.ROI_CONTRASTIVE_HEAD.NUM_CONV", "1"),
)


def _config(args, dataset, opts=()):
    plain = ["MODEL.ROI_MASK_HEAD.COLOR_CRF.AT_TEST", "False"]  # unless a variant sets it
    opts = [*(MODEL_QUICK if args.quick else ()), *plain, *args.opts, *opts]
    opts += ["DATASETS.TRAIN", f"('{dataset}',)", "DATASETS.BASE_CLASSES", "['auto']"]
    # Built-in masks may have holes. Without a score threshold there are as many detections as asked
    # for.
    opts += ["INPUT.MASK_FORMAT", "bitmask", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    return load_config(
        args.config_file, [*opts, "MODEL.DEVICE", args.device, "SOLVER.BASE_LR", "0.0"]
    )


class _Model:
    """A detector with random weights and a batch of images."""

    def __init__(self, args, dtype, dataset, opts):
        cfg = _config(args, dataset, opts)
        torch.manual_seed(0)
        self._model = build_model(cfg)
        self._optimizer = build_optimizer(cfg, self._model)
        scaler = getattr(torch.amp, "GradScaler", torch.cuda.amp.GradScaler)  # before PyTorch 2.3
        self._scaler = scaler(enabled=dtype == "float16")
        self._max_iter = cfg.SOLVER.MAX_ITER
        self._autocast = partial(autocast, args, dtype)
        np.random.seed(0)  # of Detectron2's augmentations
        mapper = ContrastMaskDatasetMapper(cfg, is_train=True)
        self._batch = [mapper(record) for record in DatasetCatalog.get(dataset)]

    def step(self):
        self._model.train()
        torch.manual_seed(2)  # the same RoIs in all models and steps
        with EventStorage(self._max_iter), self._autocast():
            loss = sum(self._model(self._batch).values())
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return {"loss": loss.item()}

    @torch.no_grad()
    def infer(self, num_detections):
        self._model.eval()
        self._model.roi_heads.box_predictor.test_topk_per_image = num_detections
        # Without the size of the file: masks get the size of the network's input.
        images = [{"image": x["image"]} for x in self._batch]
        with self._autocast():
            outputs = [self._model([image]) for image in images]
        return {"masks": sum(len(x["instances"]) for (x,) in outputs) / len(images)}


@contextmanager
def _shapes(num_images, side, annotations):
    """Name of a dataset of built-in images; with the annotations "train" novel classes lack masks,
    with "train_full" none does."""
    with tempfile.TemporaryDirectory() as folder:
        write_shapes(folder, ShapesParams(num_images, 1, side, 0))
        name = f"benchmark_{os.path.basename(folder)}"
        file = os.path.join(folder, "annotations", f"{annotations}.json")
        register_coco_format(name, file, os.path.join(folder, "train"))
        yield name
