"""What the processes of test_distributed.py do; here because they have to import it."""

import faulthandler
import json
import zlib
from contextlib import contextmanager

import pytest
import small_model
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from contrastmask.engine import Trainer, load_config

SIDE = small_model.SIDE
NUM_CLASSES = 14
TIMEOUT = 500  # seconds until a process that hangs prints its stack and ends

# For each config: scenario -> the batches of process 0, 1, ..., again and again.
SCENARIOS = {
    "default": {
        "all supervise": ["full"],
        "some have no base mask": ["full", "no base mask"],
        "some have no ground truth": ["no ground truth", "full"],
        "some keep no RoI": ["full", "no kept RoI"],
        "some have fewer images": ["one image", "full"],
        "all different": ["no ground truth", "no base mask", "half empty", "no kept RoI"],
        "nobody has ground truth": ["no ground truth"],
    },
    "proposals only": {
        "some have no positive RoI": ["tiny", "full"],
        "nobody has a positive RoI": ["tiny"],
    },
    "no contrastive loss": {
        "some have no base mask": ["full", "no base mask"],
        "nobody has ground truth": ["no ground truth"],
    },
    "self-training": {
        "some have no box without a mask": ["full", "no kept RoI"],
        "nobody has ground truth": ["no ground truth"],
    },
}
_OVERRIDES = {
    "default": [],
    "proposals only": [
        *("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False"),
        *("MODEL.ROI_HEADS.INCLUDE_GT_BOXES", "False"),
        *("MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY", "False"),
        *("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT", "0.0"),
    ],
    "no contrastive loss": ["MODEL.ROI_CONTRASTIVE_HEAD.LOSS_WEIGHT", "0.0"],
    "self-training": [
        *("MODEL.ROI_MASK_HEAD.SELF_TRAINING.LOSS_WEIGHT", "1.0"),
        *("MODEL.ROI_MASK_HEAD.SELF_TRAINING.START", "0.0"),
    ],
}
# Batches whose loss is exactly zero, by the name of the loss.
ZERO = {
    "loss_mask": ["no ground truth", "no base mask", "tiny"],
    "loss_contrastive": ["no ground truth", "no kept RoI", "tiny"],
    "loss_box_supervision": ["no ground truth", "no kept RoI"],  # the latter: all have a mask
    "loss_self_training": ["no ground truth", "no kept RoI"],
}


def kind_of(kinds, rank):
    return kinds[rank % len(kinds)]


def config(name, opts):
    return load_config(small_model.CONFIG_FILE, [*opts, *_OVERRIDES[name]])


@contextmanager
def float64():
    """
    All computations in double precision. In single precision a rounding error can decide whether a
    value is above zero or which RoI is kept: the losses of two runs agree then, and their gradients
    do not. Between 1 and 2 threads this happened in 5 of 44 cases with random weights.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def make_batch(kind, rank):
    """list[dict]: synthetic images of one process, other ones on each process."""
    rng = torch.Generator().manual_seed(zlib.crc32(f"{kind} {rank}".encode()))
    batch = []
    for k in range(1 if kind == "one image" else 2):
        empty = kind == "no ground truth" or (kind == "half empty" and k == 0)
        num = 0 if empty else 2 + (rank + k) % 3
        low = torch.rand(num, 2, generator=rng) * 30
        side = 3.0 if kind == "tiny" else 15 + 18 * torch.rand(num, 2, generator=rng)
        target = Instances((SIDE, SIDE))
        target.gt_boxes = Boxes(torch.cat([low, low + side], dim=1))
        target.gt_classes = torch.randint(NUM_CLASSES, (num,), generator=rng)
        target.gt_has_mask = torch.full((num,), kind == "no kept RoI")
        if kind not in ("no base mask", "no kept RoI"):
            target.gt_has_mask = torch.arange(num) % 2 == 0
        masks = _fill_below_diagonal(target.gt_boxes.tensor)
        target.gt_masks = BitMasks(masks | (kind == "no kept RoI"))  # full: no boundary, no keys
        image = torch.randint(256, (3, SIDE, SIDE), generator=rng, dtype=torch.uint8)
        batch.append({"image": image, "height": SIDE, "width": SIDE, "instances": target})
    return batch


def losses_and_gradients(model, scenario, kind, rank):
    """
    Returns:
        tuple[dict, dict]: the losses of process `rank`, as floats, and the gradients that `model`
        has after the backward pass; in a distributed model these are means over processes.
    """
    model.train().zero_grad(set_to_none=True)
    torch.manual_seed(zlib.crc32(f"{scenario} {rank}".encode()))  # sampling of RoIs and pixels
    with EventStorage(0):
        losses = model(make_batch(kind, rank))
    sum(losses.values()).backward()
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    gradients = {n: p.grad for n, p in inner.named_parameters() if p.requires_grad}
    return (
        {name: loss.item() for name, loss in losses.items()},
        {name: None if g is None else g.cpu().clone() for name, g in gradients.items()},
    )


class DistortedTruth(nn.Module):
    """
    Detections that are the ground-truth boxes, filled, shifted and in part left out: AP is neither
    0 nor 100.
    """

    def __init__(self, dataset_name):
        super().__init__()
        dataset = DatasetCatalog.get(dataset_name)
        self.annotations = {x["image_id"]: x["annotations"] for x in dataset}

    def forward(self, batch):
        outputs = []
        for x in batch:
            kept = [a for k, a in enumerate(self.annotations[x["image_id"]]) if k % 4 != 3]
            boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in kept]
            boxes = torch.tensor(boxes).view(-1, 4) + x["image_id"] % 3
            found = Instances((x["height"], x["width"]))
            found.pred_boxes = Boxes(boxes)
            found.pred_classes = torch.tensor([a["category_id"] for a in kept])
            rng = torch.Generator().manual_seed(x["image_id"])
            found.scores = torch.rand(len(kept), generator=rng)
            found.pred_masks = _fill(boxes)
            outputs.append({"instances": found})
        return outputs


def _grid():
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return x, y


def _fill(boxes):
    x, y = _grid()
    x0, y0, x1, y1 = (v[:, None, None] for v in boxes.unbind(1))
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def _fill_below_diagonal(boxes):
    x, y = _grid()
    x0, y0, x1, y1 = (v[:, None, None] for v in boxes.unbind(1))
    return _fill(boxes) & ((x - x0) / (x1 - x0) <= (y - y0) / (y1 - y0))


def evaluate(opts, output):
    """Writes results.json to the folder `output`."""
    cfg = config("default", [*opts, "OUTPUT_DIR", str(output)])
    Trainer.test(cfg, DistortedTruth(cfg.DATASETS.TEST[0]))


def train_in_parts(opts, num_images, num_parts):
    """
    Train with gradient accumulation. Plain gradient descent, which shows a wrong factor, on clipped
    gradients, which shows an early clip.

    Args:
        num_images (int): of a batch of all processes.
        num_parts (int): of the batch of each process.

    Returns:
        tuple[dict, dict, list[bool]]: the losses of all iterations by name, the weights, and
        whether processes exchanged gradients with each part.
    """
    opts = [
        *opts,
        *("SOLVER.IMS_PER_BATCH", str(num_images), "SOLVER.ACCUMULATION_PARTS", str(num_parts)),
        *("SOLVER.OPTIMIZER", "SGD", "SOLVER.BACKBONE_MULTIPLIER", "1.0", "SOLVER.BASE_LR", "0.2"),
        *("SOLVER.WARMUP_ITERS", "0", "SOLVER.CLIP_GRADIENTS.ENABLED", "True"),
        *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.01"),
    ]
    torch.manual_seed(4)
    trainer = Trainer(config("self-training", opts))
    trainer.test = lambda cfg, model: {}
    model, exchanged = trainer.model, []
    model.register_forward_hook(
        lambda *_: exchanged.append(getattr(model, "require_backward_grad_sync", None))
    )
    trainer.train()
    losses = {k: h.values() for k, h in trainer.storage.histories().items() if "loss" in k}
    weights = getattr(model, "module", model).state_dict()
    # Statistics of batch normalization are those of one process, and do not matter in training.
    return (
        {k: [value for value, _ in v] for k, v in losses.items()},
        {k: v.cpu() for k, v in weights.items() if "running_" not in k and "num_batches" not in k},
        exchanged,
    )


def validating_trainer(opts):
    """With validation losses of one image at a time, an average of the weights, and early stop."""
    opts = [
        *opts,
        *("SOLVER.IMS_PER_BATCH", str(comm.get_world_size()), "SOLVER.MAX_ITER", "9"),
        *("TEST.EVAL_PERIOD", "1", "TEST.BEST_METRIC", "bbox/AP", "TEST.EARLY_STOP_PATIENCE", "2"),
        *("TEST.VALIDATION_LOSS_IMAGES", "-1", "SOLVER.EMA_DECAY", "0.2"),
        # Statistics of batch normalization are those of one process.
        *("MODEL.ROI_BOX_HEAD.NORM", "GN", "MODEL.ROI_CONTRASTIVE_HEAD.PROJECTOR_NORM", "GN"),
    ]
    return Trainer(config("default", opts))


def stop_early(opts):
    """Returns when training has stopped, the validation losses, and the averaged weights."""
    trainer = validating_trainer(opts)
    values = iter([5.0, 7.0, 6.0, 6.0, 6.0])
    # As in an evaluation only the main process has results.
    trainer.test = lambda *_: {"bbox": {"AP": next(values)}} if comm.is_main_process() else {}
    trainer.train()
    losses = {k: v for k, (v, _) in trainer.storage.latest().items() if k.startswith("val/")}
    return trainer.iter, losses, trainer.weight_average.model.state_dict()


def run_process(opts, folder):
    """
    In one of several processes: all scenarios, evaluation, training in parts, training with early
    stop, and a training in which the loss of process 1 becomes NaN, which ends the processes.
    Results go to files in `folder`.
    """
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    rank = comm.get_rank()
    results = {}
    with float64():
        for name, scenarios in SCENARIOS.items():
            torch.manual_seed(rank)  # other weights on each process, until DDP makes them equal
            model = Trainer(config(name, opts))._trainer.model
            assert isinstance(model, DistributedDataParallel) and not model.find_unused_parameters
            if rank == 0:
                torch.save(model.module.state_dict(), folder / f"{name}.pth")
            for scenario, kinds in scenarios.items():
                kind = kind_of(kinds, rank)
                results[name, scenario] = losses_and_gradients(model, scenario, kind, rank)
        for num_parts in (1, 2):
            num_images, output = num_parts * comm.get_world_size(), folder / f"parts{num_parts}"
            of_parts = train_in_parts([*opts, "OUTPUT_DIR", str(output)], num_images, num_parts)
            torch.save(of_parts, folder / f"parts{num_parts}_{rank}.pth")
        of_stopped = stop_early([*opts, "OUTPUT_DIR", str(folder / "stopped")])
        torch.save(of_stopped, folder / f"stopped{rank}.pth")
    torch.save(results, folder / f"results{rank}.pth")
    evaluate(opts, folder / "evaluation")
    _train_until_nan([*opts, "OUTPUT_DIR", str(folder / "training")], folder)


def _train_until_nan(opts, folder):
    trainer = Trainer(config("default", opts))

    def break_loss(module, inputs, losses):
        if comm.get_rank() == 1 and trainer.iter == 1:
            names = [x["file_name"] for x in inputs[0]]
            (folder / "images.json").write_text(json.dumps(names))
            losses["loss_contrastive"] = losses["loss_contrastive"] + float("nan")

    trainer._trainer.model.register_forward_hook(break_loss)
    trainer.train()
