"""Settings that follow from the training data and the device, each with its reason."""

import os
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from .data.inspection import Inspection
from .data.reading_report import names

__all__ = ["Choice", "Device", "Plan", "TrainingData", "mask_branch_choices", "plan"]

# Half of the objects become larger than this, in pixels of the square root of their box's area.
_OBJECT_SIDE = 96
# Fraction of the objects below the smallest and above the largest anchor.
_TAIL = 0.05
# Strides of the feature maps that have anchors, and the least size of an anchor in strides.
_STRIDES, _MIN_ANCHOR = np.array([4, 8, 16, 32, 64]), 2
# Boxes are long where one side is more than three times the other.
_LONG, _MANY_LONG = 3.0, 0.1
_LONG_ASPECT_RATIOS = [0.25, 0.5, 1.0, 2.0, 4.0]
# How often the teacher of self-training is replaced in a training: 15 of 750 iterations is 0.98.
_TEACHER_UPDATES = 15


@dataclass
class Choice:
    """A key of the config, its value, and why."""

    key: str
    value: object
    reason: str


@dataclass(frozen=True)
class Device:
    """
    Attributes:
        name: as ``MODEL.DEVICE``.
        memory: of a GPU in GiB; 0 for the CPU.
        num_cores: of the CPU.
    """

    name: str
    memory: float = 0.0
    num_cores: int = 1

    @classmethod
    def find(cls, name: str = "") -> "Device":
        """
        Args:
            name: as ``MODEL.DEVICE``. Empty: a GPU, if there is one.

        Raises:
            ValueError: if there is no such device.
        """
        name = name or ("cuda" if torch.cuda.is_available() else "cpu")
        num_cores = os.cpu_count() or 1
        try:
            if torch.device(name).type == "cpu":
                return cls(name, 0.0, num_cores)
            memory = torch.cuda.get_device_properties(name).total_memory
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device '{name}' cannot be used: {reason}") from None
        return cls(name, memory / 2**30, num_cores)

    @property
    def is_cpu(self) -> bool:
        return not self.memory


@dataclass(frozen=True)
class TrainingData:
    """What the plan looks at. Crowds, and images without objects, do not count.

    Attributes:
        image_sizes: (N, 2) height and width of each image, in pixels.
        box_sizes: (M, 2) width and height of each object's box, in pixels.
        image_of_box: (M,) the image of each object.
        num_masks, num_rles: objects with a mask to learn from, and those whose mask is an RLE.
        masked_classes, box_classes: names of the base classes, and of the other ones.
    """

    image_sizes: np.ndarray
    box_sizes: np.ndarray
    image_of_box: np.ndarray
    num_masks: int
    num_rles: int
    masked_classes: Tuple[str, ...]
    box_classes: Tuple[str, ...]

    @classmethod
    def from_inspection(
        cls, inspection: Inspection, base_classes: Optional[Sequence[str]] = None
    ) -> "TrainingData":
        """
        Args:
            inspection: without errors.
            base_classes: names; masks of other classes are not read. None: all that have masks.

        Raises:
            ValueError: if there is no object.
        """
        class_names = inspection.class_names
        if base_classes is None:
            named = zip(class_names, inspection.statistics)
            base_classes = [name for name, x in named if x.num_masks]
        sizes, boxes, image_of_box, masks = [], [], [], []
        for record in inspection.records:
            objects = [x for x in record["annotations"] if not x["iscrowd"]]
            if objects:
                boxes += [x["bbox"][2:] for x in objects]
                image_of_box += [len(sizes)] * len(objects)
                objects = [x for x in objects if class_names[x["category_id"]] in base_classes]
                masks += [x["segmentation"] for x in objects if "segmentation" in x]
                sizes.append((record["height"], record["width"]))
        if not boxes:
            raise ValueError("there is no object to learn from")
        return cls(
            np.array(sizes, dtype=float),
            np.array(boxes, dtype=float),
            np.array(image_of_box),
            len(masks),
            sum(isinstance(x, dict) for x in masks),
            tuple(x for x in class_names if x in base_classes),
            tuple(x for x in class_names if x not in base_classes),
        )

    @property
    def num_images(self) -> int:
        return len(self.image_sizes)

    @property
    def num_box_only(self) -> int:
        return len(self.box_sizes) - self.num_masks

    @property
    def num_objects(self) -> np.ndarray:
        """(N,) objects of each image."""
        return np.bincount(self.image_of_box, minlength=self.num_images)

    def object_sides(self, short: float, longest: float) -> np.ndarray:
        """
        Returns:
            (M,) square roots of the boxes' areas, once images are scaled to a shorter side of
            `short`, or less where the longer side would be over `longest`.
        """
        scales = np.minimum(short / self.image_sizes.min(1), longest / self.image_sizes.max(1))
        return np.sqrt(self.box_sizes.prod(1)) * scales[self.image_of_box]


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        base: name of the project's config to build on.
        choices: what to set there, each key once.
    """

    base: str
    choices: List[Choice]


@dataclass(frozen=True)
class _Limits:
    """
    enlargement (float): largest factor by which the median image grows; longest (int): largest
    side; shortest (int): least shorter side; both in pixels.
    """

    enlargement: float
    longest: int
    shortest: int


_CPU_LIMITS, _GPU_LIMITS = _Limits(1.25, 384, 192), _Limits(2.0, 1333, 320)


def plan(data: TrainingData, device: Device, given: Sequence[Choice] = ()) -> Plan:
    """
    Args:
        data: what there is to learn from.
        device: that trains.
        given: settings that somebody chose; they replace those of the plan.

    Returns:
        Plan
    """
    short, longest, image_choices = _image_choices(data, device)
    choices = [
        Choice(
            "MODEL.DEVICE",
            device.name,
            f"{device.num_cores} CPU cores: a small detector."
            if device.is_cpu
            else f"A GPU with {device.memory:.0f} GiB: the detector of the published models.",
        )
    ]
    if not device.is_cpu:
        choices += [
            Choice("MODEL.RESNETS.DEPTH", 50, "The smallest of the published backbones."),
            Choice("MODEL.WEIGHTS", "torchvision://resnet50", "ImageNet weights of the backbone."),
        ]
    choices += _supervision_choices(data)
    choices += image_choices
    choices += _anchor_choices(data, data.object_sides(short, longest))
    choices += _number_choices(data, device)
    schedule = _schedule_choices(data, device)
    if data.num_masks:
        lengths = [x.value for x in (*schedule, *given) if x.key == "SOLVER.MAX_ITER"]
        choices += mask_branch_choices(data, lengths[-1])
    merged: Dict[str, Choice] = {x.key: x for x in (*choices, *schedule, *given)}
    return Plan(
        "Base-Small.yaml" if device.is_cpu else "COCO/Base-Published.yaml", [*merged.values()]
    )


def _supervision_choices(data: TrainingData) -> List[Choice]:
    masked, others = data.masked_classes, data.box_classes
    if not data.num_masks:
        return [
            Choice("MODEL.MASK_ON", False, "No object has a mask: boxes only."),
            Choice("DATASETS.BASE_CLASSES", ["auto"], "No class has masks."),
        ]
    reason = f"The classes with masks, {len(masked)} of {len(masked) + len(others)}: "
    reason += names(masked)
    reason += f"; boxes only: {names(others)}" if others else ""
    choices = [Choice("DATASETS.BASE_CLASSES", ["auto"], reason)]
    if data.num_rles:
        reason = f"{data.num_rles} of {data.num_masks} masks are RLEs, which are no polygons."
        choices.append(Choice("INPUT.MASK_FORMAT", "bitmask", reason))
    return choices


def _image_choices(data: TrainingData, device: Device) -> Tuple[int, int, List[Choice]]:
    """Shorter and longer side of images at test time, and the choices."""
    limits = _CPU_LIMITS if device.is_cpu else _GPU_LIMITS
    short_sides = data.image_sizes.min(1)
    aspect = float(np.median(data.image_sizes.max(1) / short_sides))
    sides = np.sqrt(data.box_sizes.prod(1))
    wanted = _OBJECT_SIDE / np.median(sides / short_sides[data.image_of_box])
    largest = min(limits.enlargement * np.median(short_sides), limits.longest / aspect)
    # A panorama's longer side decides.
    short = _round(min(max(wanted, limits.shortest), largest), 16)
    longest = min(_round(1.1 * short * aspect, 16), limits.longest)
    low, high = _round(0.9 * short, 16), _round(1.1 * short, 16)
    now = np.median(data.object_sides(short, longest))
    size = f"{np.median(short_sides):.0f} x {np.median(data.image_sizes.max(1)):.0f}"
    reason = (
        f"The median image has {size} pixels and the median object a side of "
        f"{np.median(sides):.0f}, which becomes {now:.0f}. Wanted are {_OBJECT_SIDE}, in images "
        f"with sides of {limits.shortest} to {limits.longest} pixels that grow by at most "
        f"{limits.enlargement:g}."
    )
    return (
        short,
        longest,
        [
            Choice("INPUT.MIN_SIZE_TEST", short, reason),
            Choice("INPUT.MAX_SIZE_TEST", longest, "Room for images that are longer than most."),
            Choice("INPUT.MIN_SIZE_TRAIN", [low, high], "A tenth around the size at test time."),
            Choice("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "Any size between the two."),
            Choice("INPUT.MAX_SIZE_TRAIN", longest, "As at test time."),
        ],
    )


def _anchor_choices(data: TrainingData, sides: np.ndarray) -> List[Choice]:
    """
    Args:
        sides: (M,) of the objects, in pixels of the scaled images.
    """
    low, high = np.quantile(sides, [_TAIL, 1 - _TAIL])
    sizes = np.maximum(np.geomspace(low, high, len(_STRIDES)), _MIN_ANCHOR * _STRIDES)
    reason = (
        f"90 % of the scaled objects have sides of {low:.0f} to {high:.0f} pixels; an anchor has "
        f"{_MIN_ANCHOR} strides of its feature map at least."
    )
    choices = [
        Choice("MODEL.ANCHOR_GENERATOR.SIZES", [[int(round(x))] for x in sizes], reason),
    ]
    long_fraction = (data.box_sizes.max(1) > _LONG * data.box_sizes.min(1)).mean()
    if long_fraction > _MANY_LONG:
        reason = f"{long_fraction:.0%} of the boxes are longer than {_LONG:g}:1."
        key = "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"
        choices.append(Choice(key, [_LONG_ASPECT_RATIOS], reason))
    return choices


def _number_choices(data: TrainingData, device: Device) -> List[Choice]:
    many, most = int(np.quantile(data.num_objects, 1 - _TAIL)), int(data.num_objects.max())
    choices = []
    if device.is_cpu:
        rois = int(np.clip(_round(4 * many, 16), 32, 128))
        proposals = int(np.clip(4 * many, 50, 300))
        reason = f"95 % of the images have at most {many} objects; {{}}"
        choices += [
            Choice(
                "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
                rois,
                reason.format("half of the RoIs can be positive."),
            ),
            Choice(
                "MODEL.RPN.POST_NMS_TOPK_TRAIN",
                max(100, 3 * rois),
                "Enough proposals to choose these RoIs from.",
            ),
            Choice(
                "MODEL.RPN.POST_NMS_TOPK_TEST",
                proposals,
                reason.format("four proposals for each, at least 50."),
            ),
        ]
    reason = f"An image has up to {most} objects; twice as many, and at least COCO's 100."
    detections = max(100, 50 * -(-2 * most // 50))
    return [*choices, Choice("TEST.DETECTIONS_PER_IMAGE", detections, reason)]


def mask_branch_choices(data: TrainingData, num_iterations: int) -> List[Choice]:
    """How masks are learned, by the measurements in docs/RESULTS.md."""
    choices = [
        Choice(
            "MODEL.ROI_HEADS.INCLUDE_GT_BOXES",
            True,
            "More masks to learn from in a step: +3.7 novel IoU on the built-in data.",
        ),
        Choice(
            "MODEL.ROI_MASK_HEAD.CAM_ON",
            False,
            "It helps if CAMs are good on new images, which the evaluation tells: with a CAM AUC "
            "below 70 the CAM costs (2.9 novel IoU on photo cut-outs), above 70 it brought 3.8 on "
            "the built-in data and cost 0.3 on photographs of animals: worth a comparison then.",
        ),
        Choice(
            "MODEL.ROI_CONTRASTIVE_HEAD.ENABLED",
            False,
            "With its loss it made no difference on the built-in data and cost 2.4 novel IoU on "
            "photographs of animals, in a longer training 5.8, three seeds each.",
        ),
        Choice(
            "MODEL.ROI_MASK_HEAD.COLOR_CRF.AT_TEST",
            True,
            "Moves masks to the edges of colors: +1.1 to +4.3 IoU on photographs of animals, novel "
            "and base classes (docs/RESULTS.md). False, if objects look like what is around them.",
        ),
    ]
    if data.num_box_only:
        choices += [
            Choice(
                "MODEL.ROI_MASK_HEAD.SELF_TRAINING.LOSS_WEIGHT",
                1.0,
                f"{data.num_box_only} objects have boxes only. A slow average of the mask head, "
                "corrected by colors, gives them masks to learn: +2.6 and +4.0 novel IoU on "
                "photographs of animals (docs/RESULTS.md).",
            ),
            Choice(
                "MODEL.ROI_MASK_HEAD.SELF_TRAINING.DECAY",
                round(max(1 - _TEACHER_UPDATES / num_iterations, 0.9), 5),
                "A longer training has a slower average: +0.1 and +0.3 novel IoU over 0.98 "
                "in two trials of 2000 iterations.",
            ),
        ]
    return choices


def _schedule_choices(data: TrainingData, device: Device) -> List[Choice]:
    choices = (_cpu_schedule if device.is_cpu else _gpu_schedule)(data, device)
    workers = min(device.num_cores - 1, 1 if device.is_cpu else 8)
    reason = f"{device.num_cores} CPU cores, one of them for the training itself."
    return [*choices, Choice("DATALOADER.NUM_WORKERS", workers, reason)]


def _cpu_schedule(data: TrainingData, device: Device) -> List[Choice]:
    batch, epochs = 4, 6
    iterations = int(np.clip(epochs * data.num_images // batch, 600, 2000))
    actual = iterations * batch / data.num_images
    return [
        Choice("SOLVER.IMS_PER_BATCH", batch, "As in the studies of docs/RESULTS.md."),
        Choice("SOLVER.BASE_LR", 0.001, "AdamW with 4 images, as there."),
        Choice(
            "SOLVER.MAX_ITER",
            iterations,
            f"{actual:.1f} epochs of {data.num_images} images; {epochs} are wanted, in 600 to 2000 "
            "iterations. Three times as many helped on the built-in data.",
        ),
        Choice("SOLVER.WARMUP_ITERS", 20, "As in the quickstart."),
        Choice("SOLVER.CHECKPOINT_PERIOD", iterations // 4, "Four in a training, for --resume."),
        Choice("TEST.EVAL_PERIOD", 0, "On a CPU at the end only."),
    ]


def _gpu_schedule(data: TrainingData, device: Device) -> List[Choice]:
    batch = int(np.clip(device.memory // 4, 1, min(16, data.num_images)))
    # 12 epochs of COCO are many images; of less data more epochs are needed, but no more than 100.
    images = max(12 * data.num_images, min(100 * data.num_images, 80_000))
    iterations = max(images // batch, 100)
    return [
        Choice("SOLVER.IMS_PER_BATCH", batch, "One image for 4 GiB of the GPU, at most 16."),
        Choice(
            "SOLVER.BASE_LR",
            0.02 * batch / 16,
            "SGD: 0.02 for 16 images, as published, and in proportion.",
        ),
        Choice(
            "SOLVER.MAX_ITER",
            iterations,
            f"{iterations * batch / data.num_images:.0f} epochs of {data.num_images} images: 12 as "
            "for COCO, or up to 100 for less data. Not measured.",
        ),
        Choice(
            "SOLVER.STEPS",
            [iterations * 2 // 3, iterations * 11 // 12],
            "After 8 and 11 twelfths, as for COCO.",
        ),
        Choice("SOLVER.WARMUP_ITERS", min(500, iterations // 10), "As published, or a tenth."),
        Choice("SOLVER.CHECKPOINT_PERIOD", iterations // 4, "Four in a training, for --resume."),
        Choice("TEST.EVAL_PERIOD", iterations // 4, "With each checkpoint."),
    ]


def _round(value: float, multiple: int) -> int:
    return max(int(round(value / multiple)), 1) * multiple
