"""Detection in one image file."""

import copy

import torch
from detectron2.evaluation import inference_context

from ..data import ContrastMaskDatasetMapper

__all__ = ["predict"]


@torch.no_grad()
def predict(cfg, model, record):
    """Detections on one image, as in evaluation.

    Args:
        cfg (CfgNode): for the test transforms.
        model (nn.Module): detector; its training mode is restored.
        record (dict): one image in Detectron2's dataset format; "file_name" is enough.

    Returns:
        Instances: on the CPU, in pixels of the image file.
    """
    model_input = ContrastMaskDatasetMapper(cfg, is_train=False)(copy.deepcopy(record))
    with inference_context(model):
        return model([model_input])[0]["instances"].to("cpu")
