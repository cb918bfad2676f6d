"""The part of tools/benchmark.py about inference: where its time goes, and what might save some."""

from argparse import Namespace
from dataclasses import replace
from functools import partial
from typing import Callable, Dict, Iterator

import torch
import torch.nn.functional as F
from benchmark_parts import MODEL_QUICK, Comparison, autocast
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, Instances

from contrastmask import get_config
from contrastmask.modeling.build import build_model
from contrastmask.modeling.cam import min_max_normalize, resize_map
from contrastmask.modeling.self_similarity import enhance_by_self_similarity


def inference(args: Namespace) -> Iterator[Comparison]:
    """Inference of one image: its stages, and other ways to run the mask branch

    The image is random, and so are the weights. "difference" is the largest one of a mask's logits
    from those of the branch as it is, relative to the largest logit.
    """
    opts = [*(MODEL_QUICK if args.quick else ()), *args.opts, "MODEL.WEIGHTS", ""]
    opts += ["MODEL.DEVICE", args.device, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    opts += ["MODEL.ROI_HEADS.NUM_CLASSES", "80"]
    cfg = get_config(args.config_file, opts)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    short = 64 if args.quick else cfg.INPUT.MIN_SIZE_TEST
    image = torch.randint(256, (3, short, 4 * short // 3), dtype=torch.uint8)
    for number in args.detections:
        model.roi_heads.box_predictor.test_topk_per_image = number
        inputs = _Inputs(model, image)
        labels = {"image": f"{short} x {4 * short // 3}", "masks": len(inputs.boxes[0])}
        yield Comparison(labels, _stages(inputs), repeats=5)
        yield Comparison(labels, _other_ways(inputs, args), repeats=5)


class _Inputs:
    """What the stages of a model get for an image."""

    @torch.no_grad()
    def __init__(self, model: GeneralizedRCNN, image: torch.Tensor):
        self.model, self.heads = model, model.roi_heads
        self.batch = [{"image": image, "height": image.shape[1], "width": image.shape[2]}]
        self.images = model.preprocess_image(self.batch)
        self.features = model.backbone(self.images.tensor)
        self.proposals, _ = model.proposal_generator(self.images, self.features)
        self.instances = self.heads._detect(self.features, self.proposals)
        self.boxes = [x.pred_boxes for x in self.instances]
        self.cams = torch.cat([x.pred_cams for x in self.instances])[:, None]
        self.branch = self.heads._mask_branch
        self.pooled = self.pool(self.heads.mask_pooler)
        self.size = self.pooled.shape[-1]
        self.cam = min_max_normalize(resize_map(self.cams, self.size))
        self.pooled_twice = self.pool(self.heads.contrastive_pooler)
        self.encoded = self.heads.contrastive_head(self.pooled_twice)
        self.enhanced = enhance_by_self_similarity(self.encoded, self.size)
        self.outputs = self.add_masks()

    def pool(self, pooler):
        return pooler([self.features[x] for x in self.heads.mask_in_features], self.boxes)

    def add_masks(self):
        """The mask branch, and colors if the config has them."""
        instances = [Instances(x.image_size, **x.get_fields()) for x in self.instances]
        return self.heads.forward_with_given_boxes(self.features, instances, self.images)

    def logits(self, branch, rois_at_once=None):
        """Mask logits by a branch that may be another one."""
        (boxes,), step = (x.tensor for x in self.boxes), rois_at_once or len(self.cams)
        pieces = zip(boxes.split(step), self.cams.split(step))
        return torch.cat([branch.logits(self.features, [Boxes(x)], cam) for x, cam in pieces])


def _stages(x: _Inputs) -> Dict[str, Callable[[], None]]:
    head, encoder, size = x.heads.mask_head, x.heads.contrastive_head, x.size
    sizes = x.images.image_sizes
    functions = {
        "whole image": lambda: x.model(x.batch),
        "backbone": lambda: x.model.backbone(x.images.tensor),
        "proposals": lambda: x.model.proposal_generator(x.images, x.features),
        "box head, NMS, CAMs": lambda: x.heads._detect(x.features, x.proposals),
        "mask branch": x.add_masks,
        "of it: RoI features of the mask head": lambda: x.pool(x.heads.mask_pooler),
        "of it: RoI features of the encoder": lambda: x.pool(x.heads.contrastive_pooler),
        "of it: encoder": lambda: encoder(x.pooled_twice),
        "of it: enhancement": lambda: enhance_by_self_similarity(x.encoded, size),
        "of it: mask head": lambda: head(x.pooled, x.cam, x.enhanced),
        "masks in the image": lambda: x.model._postprocess(x.outputs, x.batch, sizes),
    }
    return {name: partial(_run, function) for name, function in functions.items()}


def _other_ways(x: _Inputs, args: Namespace) -> Dict[str, Callable[[], dict]]:
    heads = x.heads

    def pooled_once():
        pooled = x.pool(heads.contrastive_pooler)
        enhanced = enhance_by_self_similarity(heads.contrastive_head(pooled), x.size)
        cam = min_max_normalize(resize_map(x.cams, x.size))
        return heads.mask_head(F.adaptive_avg_pool2d(pooled, x.size), cam, enhanced)

    def in_type(dtype):
        with autocast(args, dtype):
            return x.logits(x.branch)

    functions = {"mask branch as it is": partial(x.logits, x.branch)}
    for number in (8, 32, 64):
        functions[f"{number} RoIs at a time"] = partial(x.logits, x.branch, number)
    functions["features pooled once"] = pooled_once
    for dtype in args.dtype:
        if dtype != "float32":
            functions[dtype] = partial(in_type, dtype)
    if args.compile:
        compiled = {k: torch.compile(getattr(heads, k)) for k in ("mask_head", "contrastive_head")}
        functions["torch.compile"] = partial(x.logits, replace(x.branch, **compiled))
    expected = _run(functions["mask branch as it is"], keep=True).float()

    def difference(function):
        error = (_run(function, keep=True).float() - expected).abs().max()
        return {"difference": float(error / expected.abs().max())}

    return {name: partial(difference, function) for name, function in functions.items()}


@torch.no_grad()
def _run(function, keep=False):
    result = function()
    return result if keep else None
