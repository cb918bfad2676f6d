"""Every configuration key of ContrastMask, each with its meaning, and reading config files."""

import ast
import logging
from contextlib import contextmanager
from functools import reduce
from typing import Iterator, Sequence

import torch
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog

from .config_files import config_path

logger = logging.getLogger(__name__)


def default_config() -> CN:
    """
    Detectron2's default config with the keys of ContrastMask. ``MODEL.ROI_HEADS.NUM_CLASSES`` is 0:
    it follows from the data unless somebody sets it.
    """
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 0
    return cfg


def get_config(config_file: str, opts: Sequence[str] = ()) -> CN:
    """Detectron2's defaults, the keys of ContrastMask, a config file and overrides, all merged.

    Args:
        config_file: a YAML file, or its name in the project's ``configs`` folder, such as
            "COCO/contrastmask_R_50_FPN_3x_voc2nonvoc.yaml".
        opts: KEY VALUE pairs that override the file.

    Returns:
        CfgNode: not frozen. Datasets of ``DATASETS.COCO_FORMAT`` are not registered yet: see
        :func:`contrastmask.data.register_datasets`; ``MODEL.ROI_HEADS.NUM_CLASSES`` may still be 0
        for these: see :func:`contrastmask.data.set_num_classes`.

    Raises:
        ValueError: if the file cannot be read, and for keys and values that do not exist; it names
            the file or the key.
    """
    cfg = default_config()
    with naming_config(f"config file {config_file}"):
        # Detectron2's default would run code that is written in the file.
        cfg.merge_from_file(config_path(config_file), allow_unsafe=False)
    merge_overrides(cfg, opts)
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES == 0:
        names = [MetadataCatalog.get(x).get("thing_classes") for x in cfg.DATASETS.TRAIN]
        if len(names) == 1 and names[0]:  # known before a file is read, as for COCO
            cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(names[0])
    return cfg


def merge_overrides(cfg: CN, opts: Sequence[str]) -> None:
    """
    Merge KEY VALUE pairs into a config and check its numbers. Lists may also be written as in
    config files: ``[cat, dog]``. Raises ValueError.
    """
    opts = list(opts)
    with naming_config("config override"):
        opts[1::2] = [_with_list(cfg, key, value) for key, value in zip(opts[::2], opts[1::2])]
        cfg.merge_from_list(opts)
    check_contrastmask_config(cfg)


def _with_list(cfg, key, value):
    """The value of an override: a list if it is the YAML of one and the key holds one."""
    try:
        is_list = isinstance(value_of(cfg, key), (list, tuple))
    except (KeyError, TypeError):  # CfgNode says so
        return value
    if not (is_list and isinstance(value, str)):
        return value
    try:
        ast.literal_eval(value)
        return value  # CfgNode does the same
    except (SyntaxError, ValueError):
        pass
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = None
    if not isinstance(parsed, list):
        raise ValueError(f"{key} has to be a list, such as [cat, dog] or [cat], not {value}")
    return parsed


@contextmanager
def naming_config(source: str) -> Iterator[None]:
    """Make what goes wrong inside a ValueError that begins with `source`."""
    try:
        yield
    except RecursionError:
        raise ValueError(f"{source}: its _BASE_ leads back to itself") from None
    except (TypeError, AttributeError) as error:  # an empty file, or a list
        raise ValueError(f"{source}: it has to hold keys with values ({error})") from error
    except (AssertionError, KeyError, OSError, ValueError, yaml.YAMLError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ValueError(f"{source}: {reason}") from error


def use_available_device(cfg: CN) -> None:
    """Set ``MODEL.DEVICE`` to the CPU, with a warning, where it asks for CUDA and there is none."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but there is no CUDA: using the CPU")
        cfg.MODEL.DEVICE = "cpu"


def add_contrastmask_config(cfg):
    """Add the keys of ContrastMask to a Detectron2 config.

    Section numbers in the comments are those of the paper (Wang et al., CVPR 2022); "authors' code"
    marks what only the released implementation states.

    Args:
        cfg (CfgNode): Detectron2's default config; changed in place.
    """
    _add_dataset_config(cfg)
    _add_input_config(cfg)
    _add_model_config(cfg)
    _add_box_head_config(cfg)
    _add_mask_head_config(cfg)
    _add_contrastive_head_config(cfg)
    _add_solver_config(cfg)
    _add_test_config(cfg)


_INF = float("inf")
# Smallest and largest value of numbers that would train nonsense instead of failing. Other values
# are checked where they are used.
_RANGES = {
    "MODEL.ROI_BOX_HEAD.NUM_CLS_CONV": (0, _INF),
    "MODEL.ROI_BOX_HEAD.NUM_REG_CONV": (0, _INF),
    "MODEL.ROI_MASK_HEAD.LOGIT_INIT_STD": (0, _INF),
    "MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.MAX_COLOR_DISTANCE": (0, _INF),
    "MODEL.ROI_MASK_HEAD.SELF_TRAINING.LOSS_WEIGHT": (0, _INF),
    "MODEL.ROI_MASK_HEAD.SELF_TRAINING.START": (0, 1),
    "MODEL.ROI_MASK_HEAD.SELF_TRAINING.RAMP": (0, 1),
    "MODEL.ROI_MASK_HEAD.SELF_TRAINING.DECAY": (0, 1),
    "MODEL.ROI_MASK_HEAD.COLOR_CRF.WEIGHT": (0, _INF),
    "MODEL.ROI_MASK_HEAD.COLOR_CRF.TEST_WEIGHT": (0, _INF),
    "MODEL.ROI_MASK_HEAD.COLOR_CRF.DISTANCE": (0.001, _INF),
    "MODEL.ROI_MASK_HEAD.COLOR_CRF.COLOR_DISTANCE": (0.001, _INF),
    "MODEL.ROI_CONTRASTIVE_HEAD.POOLER_RESOLUTION": (1, _INF),
    "MODEL.ROI_CONTRASTIVE_HEAD.NUM_CONV": (0, _INF),
    "MODEL.ROI_CONTRASTIVE_HEAD.CONV_DIM": (1, _INF),
    "MODEL.ROI_CONTRASTIVE_HEAD.NUM_PROJECTOR_CONV": (0, _INF),
    "MODEL.ROI_CONTRASTIVE_HEAD.PROJECTOR_DIM": (1, _INF),
    "MODEL.ROI_CONTRASTIVE_HEAD.DELTA": (0, 0.5),
    "MODEL.ROI_CONTRASTIVE_HEAD.FALLBACK_DELTA": (0, 0.5),
    "MODEL.ROI_CONTRASTIVE_HEAD.MIN_QUERY_SIZE": (1, _INF),
    "MODEL.ROI_CONTRASTIVE_HEAD.RING_WIDTH": (1, _INF),
    "MODEL.ROI_CONTRASTIVE_HEAD.MIN_SET_SIZE": (1, _INF),
    "MODEL.ROI_CONTRASTIVE_HEAD.TEMPERATURE_EASY": (0.001, _INF),
    "MODEL.ROI_CONTRASTIVE_HEAD.TEMPERATURE_HARD": (0.001, _INF),
    "MODEL.ROI_CONTRASTIVE_HEAD.LOSS_WEIGHT": (0, _INF),
    "MODEL.ROI_CONTRASTIVE_HEAD.MAX_ROIS": (0, _INF),
    "SOLVER.ACCUMULATION_PARTS": (1, _INF),
    "SOLVER.BACKBONE_MULTIPLIER": (0, _INF),
    "SOLVER.EMA_DECAY": (0, 0.99999),
    "TEST.EARLY_STOP_PATIENCE": (0, _INF),
    "TEST.VALIDATION_LOSS_IMAGES": (-1, _INF),
}


def value_of(cfg, key: str):
    """The value of a key such as ``MODEL.ROI_HEADS.NUM_CLASSES``."""
    return reduce(lambda node, name: node[name], key.split("."), cfg)


def check_contrastmask_config(cfg):
    """
    Args:
        cfg (CfgNode): with the keys of ContrastMask.

    Raises:
        ValueError: if a number is out of its range, or two keys exclude each other; it names them.
    """
    for key, (low, high) in _RANGES.items():
        value = value_of(cfg, key)
        # A comparison with NaN is False.
        if value is None or not low <= value <= high or value == _INF:
            allowed = f"at least {low}" if high == _INF else f"{low} to {high}"
            raise ValueError(f"{key} is {value}, it has to be {allowed}")
    if cfg.TEST.AUG.ENABLED and cfg.MODEL.ROI_MASK_HEAD.COLOR_CRF.AT_TEST:
        raise ValueError(
            "TEST.AUG.ENABLED and MODEL.ROI_MASK_HEAD.COLOR_CRF.AT_TEST cannot both be True: "
            "Detectron2's test-time augmentation gives the mask branch no colors"
        )


def _add_dataset_config(cfg):
    # Classes whose masks train the mask head ("base"): names of classes of the training dataset,
    # names of sets of classes ("voc", "nonvoc", "shapes_base"), or one entry with the path of a
    # text file that lists class names, one a line. Masks of all other classes are never read.
    # Or one entry that looks at the annotations of DATASETS.TRAIN: "auto", the classes that have
    # any mask and are not in NOVEL_CLASSES. So every instance that has a mask supervises, unless
    # its class is named there; "instances" is another name for this. In all cases an instance of a
    # base class without a mask is treated like one of a novel class. With MODEL.MASK_ON False there
    # may be no base class.
    cfg.DATASETS.BASE_CLASSES = []
    # Classes that have boxes only ("novel"), given like BASE_CLASSES. Empty: every class of the
    # dataset that is not base. Classes named in neither list are trained with their boxes, and
    # count in the "all" row of the evaluation only.
    cfg.DATASETS.NOVEL_CLASSES = []
    # Datasets in COCO format to register under a name, each [name, annotation file, image folder].
    # The names can then be used in DATASETS.TRAIN and DATASETS.TEST.
    cfg.DATASETS.COCO_FORMAT = []
    # Names of the model's classes, in the order of their ids. Empty: the classes of DATASETS.TRAIN.
    # Classes of datasets are matched with these by name. Checkpoints bring this list along, so that
    # nothing after training needs the training data.
    cfg.DATASETS.CLASS_NAMES = []
    # What "iscrowd" 1 means in files of COCO_FORMAT: "ignore" (COCO: regions that training leaves
    # out, and in which the evaluation ignores detections) or "objects" (CVAT and V7 mark drawn
    # masks in this way).
    cfg.DATASETS.CROWDS = "ignore"
    # What the four numbers of a box mean in files of COCO_FORMAT: "xywh" (COCO: left, top, width,
    # height), "xyxy" (left, top, right, bottom) or "cxcywh" (center, width, height); in pixels.
    cfg.DATASETS.BOX_FORMAT = "xywh"
    # In files of COCO_FORMAT, take the box of every annotation that has a mask from the mask.
    cfg.DATASETS.BOXES_FROM_MASKS = False
    # What polygons that are upright rectangles mean in files of COCO_FORMAT: "masks", or "boxes",
    # which VIA and Roboflow write as polygons too; such annotations then have no mask.
    cfg.DATASETS.BOX_MASKS = "masks"


def _add_input_config(cfg):
    # Library that resizes images, in training and at test time: "pil" (Detectron2's choice) or
    # "opencv" (the published models), whose bilinear interpolation does not smooth.
    cfg.INPUT.RESIZE_BACKEND = "pil"
    # The two levels that are black and white in gray images of more than 8 bits, such as
    # [0, 65535]. Empty: such images are refused, because Pillow would clip them.
    cfg.INPUT.GRAY_RANGE = []
    # Largest number of pixels of an image file. 0: Pillow's limit, 179 million, which guards
    # against files that are made to fill the memory.
    cfg.INPUT.MAX_IMAGE_PIXELS = 0


def _add_model_config(cfg):
    # Parts of the model, as prefixes of tensor names, that keep their initial values instead of
    # taking those of MODEL.WEIGHTS. Where a checkpoint's shapes do not fit the model, loading it is
    # an error unless the part is named here: ["roi_heads.box_predictor"] to fine-tune on other
    # classes. Only the start of a training uses this key: where one is resumed, and in evaluation,
    # the demo and the tools, everything is loaded.
    cfg.MODEL.WEIGHTS_EXCLUDE = []
    # Parts of the model that do not learn, as prefixes of parameter names: ["backbone",
    # "proposal_generator"] to train the RoI heads only, on top of a detector.
    cfg.MODEL.FROZEN_PARTS = []
    # Keep feature maps and convolutions in channels-last order in training, evaluation, the demo
    # and the tools, which is faster on some machines (docs/PERFORMANCE.md). Results differ by
    # rounding only.
    cfg.MODEL.CHANNELS_LAST = False
    # Limit decoded log-size deltas from below as well, to -log(1000 / 16), in the RoI heads and in
    # the ContrastMaskRPN (published models). Detectron2 limits them from above only.
    cfg.MODEL.CLAMP_BOX_DELTAS_BELOW = False
    # Low-quality matches of anchors and of proposals. -1: Detectron2's rules (an anchor that
    # overlaps a ground truth more than all other anchors becomes positive, whatever the overlap;
    # proposals have no such rule). A value of 0 or more: the boxes that overlap a ground truth most
    # become positive and belong to it, if the overlap reaches this value (published models: 0.3 and
    # 0.5). MODEL.RPN's key needs MODEL.PROPOSAL_GENERATOR.NAME ContrastMaskRPN.
    cfg.MODEL.RPN.LOW_QUALITY_MIN_IOU = -1.0
    cfg.MODEL.ROI_HEADS.LOW_QUALITY_MIN_IOU = -1.0
    # Sample all ground-truth boxes among the positive RoIs, as far as these suffice, instead of
    # some by chance: the mask loss on ground-truth boxes only then has more RoIs at no cost.
    cfg.MODEL.ROI_HEADS.INCLUDE_GT_BOXES = False


def _add_box_head_config(cfg):
    # Convolutions of the classification branch after the NUM_CONV shared ones. Class activation
    # maps are read from the output of this branch (authors' code).
    cfg.MODEL.ROI_BOX_HEAD.NUM_CLS_CONV = 1
    # Convolutions of the box regression branch after the NUM_CONV shared ones (authors' code).
    cfg.MODEL.ROI_BOX_HEAD.NUM_REG_CONV = 2


def _add_mask_head_config(cfg):
    # Compute the mask loss on RoIs that are ground-truth boxes themselves, not on proposals that
    # overlap one (authors' code; found decisive for novel classes by DeepMAC, arXiv 2104.00613).
    cfg.MODEL.ROI_MASK_HEAD.GT_BOXES_ONLY = True
    # Add the normalized class activation map to the features of the mask head (Sec. 3.4).
    cfg.MODEL.ROI_MASK_HEAD.CAM_ON = True
    # Standard deviation of the initial weights of the mask logit layer. 0: Kaiming normal over
    # fan-out, as in the authors' code (1.41: large). Detectron2 itself uses 0.001.
    cfg.MODEL.ROI_MASK_HEAD.LOGIT_INIT_STD = 0.0
    # A second mask loss, on ground-truth boxes without a mask: each row and column of the box has
    # foreground, and neighboring pixels of similar color belong together (BoxInst, arXiv
    # 2012.02310; not part of ContrastMask). Costs nothing at test time; see docs/RESULTS.md.
    cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION = CN()
    # Weight of that loss; 0 leaves it out.
    cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.LOSS_WEIGHT = 0.0
    # Colors are similar below this Euclidean distance, in units of 0..255 per channel.
    cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.MAX_COLOR_DISTANCE = 15.0
    # Fraction of training during which the weight grows from 0 to its value.
    cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.WARMUP = 0.5
    # Self-training, a third mask loss, on ground-truth boxes without a mask: a slow average of the
    # mask head predicts their masks, a conditional random field moves these to the edges of colors,
    # overlapping ones of a class are divided, and the mask head learns the result (not part of
    # ContrastMask). Costs nothing at test time; see docs/RESULTS.md.
    cfg.MODEL.ROI_MASK_HEAD.SELF_TRAINING = CN()
    self_training = cfg.MODEL.ROI_MASK_HEAD.SELF_TRAINING
    # Weight of that loss; 0 leaves it out.
    self_training.LOSS_WEIGHT = 0.0
    # Fraction of training after which the loss begins, and fraction during which its weight then
    # grows from 0 to its value.
    self_training.START = 0.2
    self_training.RAMP = 0.2
    # Share of its old value that the average keeps in each iteration: for 750 iterations, as they
    # were in the trials. 1 - 15 / MAX_ITER for longer training.
    self_training.DECAY = 0.98
    # A conditional random field moves masks to the edges of colors (not part of ContrastMask):
    # those that self-training learns and, at test time, those of the mask head.
    cfg.MODEL.ROI_MASK_HEAD.COLOR_CRF = CN()
    crf = cfg.MODEL.ROI_MASK_HEAD.COLOR_CRF
    # Use it at test time, too; docs/RESULTS.md has what it gains, docs/PERFORMANCE.md its time.
    crf.AT_TEST = False
    # Weight of the vote of all other cells against a mask's own logit. 0 leaves masks as they are.
    crf.WEIGHT = 4.0
    # The same at test time, where votes come from larger cells, once.
    crf.TEST_WEIGHT = 3.0
    # Added to mask logits at test time first: on photographs, masks of novel classes lack parts of
    # their objects, and the votes of what is around the box take more away.
    crf.TEST_BIAS = 0.5
    # A vote counts less with the distance between two cells, as a Gaussian of this standard
    # deviation, in sides of the box ...
    crf.DISTANCE = 0.3
    # ... and with the distance of their colors, in units of CIELAB (white is 100 from black).
    crf.COLOR_DISTANCE = 4.0
    # At test time the mask branch runs on at most this many RoIs at once, which bounds its memory.
    cfg.MODEL.ROI_MASK_HEAD.TEST_ROIS_PER_CHUNK = 128


def _add_contrastive_head_config(cfg):
    cfg.MODEL.ROI_CONTRASTIVE_HEAD = CN()
    head = cfg.MODEL.ROI_CONTRASTIVE_HEAD
    # Use the contrastive head. False leaves a class-agnostic Mask R-CNN (with CAM, if CAM_ON).
    head.ENABLED = True
    # Side of the square RoI features of the contrastive head, in cells (Sec. 4.1).
    head.POOLER_RESOLUTION = 28
    # RoI pooling of the contrastive head; see MODEL.ROI_MASK_HEAD for the two keys' meaning.
    head.POOLER_TYPE = "ROIAlignV2"
    head.POOLER_SAMPLING_RATIO = 0
    # Number and channels of the 3x3 convolutions of the encoder (Sec. 3.3).
    head.NUM_CONV = 8
    head.CONV_DIM = 256
    # Normalization of the encoder's convolutions: "" (authors' code) or a Detectron2 norm name.
    head.NORM = ""
    # Number of 1x1 convolutions before the last linear layer of the projector (Sec. 3.3).
    head.NUM_PROJECTOR_CONV = 2
    # Channels of the projector's layers and of queries and keys.
    head.PROJECTOR_DIM = 256
    # Normalization of the projector's convolutions. "BN" takes its statistics per GPU over all
    # positive RoIs (authors' code). Statistics over all GPUs are refused: some have no such RoI.
    head.PROJECTOR_NORM = "BN"

    # Novel RoIs: pixels whose normalized CAM is above 1 - DELTA are foreground, below DELTA
    # background (Sec. 3.2).
    head.DELTA = 0.1
    # Same threshold for a base RoI whose mask leaves fewer than MIN_QUERY_SIZE pixels for a query.
    head.FALLBACK_DELTA = 0.05
    # A query region of a base RoI needs this many pixels, else the CAM decides (authors' code).
    head.MIN_QUERY_SIZE = 2
    # Half width, in cells, of the ring around a mask's boundary in which keys are hard. 1 is the
    # authors' "distance below 2" (Sec. 3.2).
    head.RING_WIDTH = 1
    # A RoI takes part in the loss only if each of its four key sets has this many pixels.
    head.MIN_SET_SIZE = 5
    # Fraction sigma of each key set that is sampled, uniformly, without replacement (Sec. 4.1).
    head.SAMPLE_FRACTION = 0.3

    # Form of the loss: "paper" (Eq. 2), or "released": as the authors' code computes it, with keys
    # taken relative to the query and no temperature in the positive term of the denominator.
    head.LOSS_FORM = "released"
    # Temperatures for easy and for hard keys (Sec. 4.1).
    head.TEMPERATURE_EASY = 0.3
    head.TEMPERATURE_HARD = 0.7
    # Largest number of RoIs in the loss, per GPU; 0: all positive RoIs (authors' code). The RoIs of
    # the mask loss always take part, the others are drawn at random. Time and memory of the
    # contrastive branch are proportional to this number.
    head.MAX_ROIS = 0
    # Weight of the loss. 0 leaves the loss and the projector out and keeps the enhanced features.
    head.LOSS_WEIGHT = 0.1
    # Ramp of the weight (authors' code): training is cut into RAMP_STEPS equal steps; in step s
    # (from 0) the weight is multiplied by min(max(RAMP_START, s / RAMP_FULL_STEP), 1).
    head.RAMP_START = 0.25
    head.RAMP_STEPS = 12
    head.RAMP_FULL_STEP = 4


def _add_solver_config(cfg):
    # "SGD" (Detectron2's, used by the published models) or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Learning rate of the backbone without its FPN, relative to SOLVER.BASE_LR; ADAMW only.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Gradient accumulation: every process computes its share of SOLVER.IMS_PER_BATCH, which stays
    # the number of images of a step of the optimizer, in so many parts, one after the other. It
    # takes the memory of one part, and trains like so many times as many GPUs (docs/TRAINING.md).
    cfg.SOLVER.ACCUMULATION_PARTS = 1
    # Average the weights over training, exponentially: the share of its old value that the average
    # keeps in each iteration, such as 0.999. Evaluations in training are then of the average, as is
    # model_best.pth, and model_final_ema.pth is written beside model_final.pth. 0: no average. (The
    # teacher of MODEL.ROI_MASK_HEAD.SELF_TRAINING is another average.)
    cfg.SOLVER.EMA_DECAY = 0.0
    # Precision of training with SOLVER.AMP.ENABLED: "float16" (Detectron2's, with a scale of the
    # loss; needs a GPU) or "bfloat16" (no scale; also on CPUs). Evaluation stays in float32.
    cfg.SOLVER.AMP.PRECISION = "float16"
    # Experiment trackers that receive the numbers of metrics.json, too: "wandb" (Weights & Biases)
    # and "mlflow". Their packages have to be installed, and read from environment variables, such
    # as WANDB_PROJECT, WANDB_MODE=offline and MLFLOW_TRACKING_URI, where and how to log.
    cfg.TRACKERS = []


def _add_test_config(cfg):
    # Library that computes AP: "hotcoco" (fast), "pycocotools" (slow), or "auto": hotcoco if it is
    # installed, else pycocotools. The numbers are the same.
    cfg.TEST.COCO_EVAL_BACKEND = "auto"
    # Also report the mask AP that the predicted boxes would have as masks. One more pass.
    cfg.TEST.EVAL_FILLED_BOXES = False
    # Write a report after each evaluation: report.html in OUTPUT_DIR (report_<dataset>.html if
    # there are several), one file with AP tables, charts, training curves and example masks. There
    # is none for a dataset without annotations.
    cfg.TEST.REPORT = False
    # At each evaluation in training (TEST.EVAL_PERIOD), the mean losses on so many images of
    # DATASETS.TEST, evenly spread: val/loss_mask and so on in metrics.json and TensorBoard. Masks
    # of novel classes are not read for it. -1: all images; 0: no such losses.
    cfg.TEST.VALIDATION_LOSS_IMAGES = 0
    # Keep the weights of the best evaluation (TEST.EVAL_PERIOD) in model_best.pth: the best by this
    # metric, such as "segm-novel/AP" or "gt-box-mask-novel/IoU", with the name of the dataset and a
    # slash before it if there are several; or "val/total_loss" or "val/loss_mask", of which less is
    # better. Another name is an error, which lists those that exist. Empty: no such file.
    cfg.TEST.BEST_METRIC = ""
    # End training after so many evaluations in a row without a better TEST.BEST_METRIC. 0: never.
    cfg.TEST.EARLY_STOP_PATIENCE = 0
