"""Files of an exported model, and the JSON file that says how to use them."""

import json
import os
import warnings
from importlib.util import find_spec
from typing import BinaryIO, Dict, List, Sequence, Tuple

import torch
from torch import nn

from .. import __version__
from ..atomic_files import write_whole
from ..predictor import MASK_THRESHOLD, Predictor
from .graphs import BoxMaskGraph, DetectorGraph

__all__ = ["DESCRIPTION_FILE", "FORMATS", "export_model"]

FORMATS = ("onnx", "torchscript")
DESCRIPTION_FILE = "model.json"
_SUFFIX = {"onnx": ".onnx", "torchscript": ".pt"}
_GRAPHS = {"detector": DetectorGraph, "box_masks": BoxMaskGraph}
# Any size that is not square, and not one to which images are padded.
_EXAMPLE_SIZE = (150, 211)
_EXAMPLE_BOXES = [[20.0, 30.0, 90.0, 140.0], [5.0, 8.0, 200.0, 60.0], [100.0, 70.0, 130.0, 95.0]]
_VALUES = {
    "image": ("uint8", "channels, height, width", "resized as `preprocessing` says"),
    "boxes": ("float32", "number, 4", "x0, y0, x1, y1 in pixels of the resized image"),
    "classes": ("int64", "number", "index in `class_names`"),
    "scores": ("float32", "number", "0..1, highest first"),
    "mask_logits": ("float32", "number, side, side", "of the cells of each box; above 0: mask"),
    "cams": ("float32", "number, side, side", "class activation map of each box, not normalized"),
}


def export_model(predictor: Predictor, output: str, file_format: str) -> List[str]:
    """
    Write the detector, the model that segments given boxes, and their description.

    Args:
        predictor: TorchScript files are for its device.
        output: folder; made if there is none.
        file_format: one of `FORMATS`.

    Returns:
        Paths of the files.

    Raises:
        ValueError: for an unknown format, or a model that is not exported.
        ImportError: if a package is missing; it says which.
    """
    if file_format not in FORMATS:
        raise ValueError(f"The format {file_format!r} is unknown: choose from {', '.join(FORMATS)}")
    if file_format == "onnx":
        _check_packages()
    graphs = {name: graph(predictor.model).eval() for name, graph in _GRAPHS.items()}
    os.makedirs(output, exist_ok=True)
    paths = []
    for name, graph in graphs.items():
        paths.append(os.path.join(output, name + _SUFFIX[file_format]))
        with write_whole(paths[-1], "wb") as f:
            _write(graph, _example(graph), file_format, f)
    paths.append(os.path.join(output, DESCRIPTION_FILE))
    with write_whole(paths[-1], "w", encoding="utf-8") as f:
        json.dump(_describe(predictor, graphs, file_format), f, indent=1, ensure_ascii=False)
    return paths


def _check_packages():
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"the format onnx needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def _example(graph) -> Dict[str, torch.Tensor]:
    """Inputs by name, in their order."""
    device = graph.pixel_mean.device
    image = torch.randint(256, (len(graph.pixel_mean), *_EXAMPLE_SIZE), dtype=torch.uint8)
    inputs = {"image": image.to(device)}
    if not isinstance(graph, DetectorGraph):
        inputs["boxes"] = torch.tensor(_EXAMPLE_BOXES, device=device)
        inputs["classes"] = torch.zeros(len(_EXAMPLE_BOXES), dtype=torch.int64, device=device)
    return inputs


@torch.no_grad()
def _write(graph: nn.Module, inputs: Dict[str, torch.Tensor], file_format: str, f: BinaryIO):
    with warnings.catch_warnings():
        # Of PyTorch about itself, about torchvision, and about what tests compare.
        warnings.simplefilter("ignore", category=FutureWarning)
        warnings.simplefilter("ignore", category=DeprecationWarning)
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "# The axis name")  # boxes and classes have the same one
        if file_format == "torchscript":
            traced = torch.jit.trace(graph, tuple(inputs.values()), check_trace=False)
            torch.jit.save(traced, f)
            return
        dynamic = {
            "image": {1: "height", 2: "width"},
            "boxes": {0: "boxes"},
            "classes": {0: "boxes"},
        }
        program = torch.onnx.export(
            graph,
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=tuple(dynamic[name] for name in inputs),
            input_names=list(inputs),
            output_names=list(graph.output_names),
            verbose=False,
        )
        f.write(program.model_proto.SerializeToString())


def _describe(predictor: Predictor, graphs: Dict[str, nn.Module], file_format: str) -> dict:
    cfg = predictor.cfg
    backend = cfg.INPUT.RESIZE_BACKEND
    return {
        "contrastmask": __version__,
        "format": file_format,
        "preprocessing": {
            "resize": {
                "short_side": cfg.INPUT.MIN_SIZE_TEST,
                "max_long_side": cfg.INPUT.MAX_SIZE_TEST,
                "rule": "factor = min(short_side / min(height, width), max_long_side / max(height, "
                "width)); new side = int(side * factor + 0.5); short_side 0: no resizing",
                "interpolation": "bilinear",
                "library": backend,
                "smooths_when_smaller": backend == "pil",
            },
            "channel_order": cfg.INPUT.FORMAT,
            "in_the_graph": {
                "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
                "pixel_std": list(cfg.MODEL.PIXEL_STD),
                "size_divisibility": graphs["detector"].divisibility,
            },
        },
        "class_names": list(predictor.class_names),
        "base": list(predictor.base),
        "novel": list(predictor.novel),
        "thresholds": {
            "score": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "nms": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "mask_probability": MASK_THRESHOLD,
        },
        "models": {
            name: {
                "file": name + _SUFFIX[file_format],
                "inputs": _values(_example(graph)),
                "outputs": _values(graph.output_names),
            }
            for name, graph in graphs.items()
        },
    }


def _values(names: Sequence[str]) -> List[Dict[str, str]]:
    keys: Tuple[str, ...] = ("type", "shape", "meaning")
    return [{"name": name, **dict(zip(keys, _VALUES[name]))} for name in names]
