"""Masks for given boxes and classes."""

from typing import Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, BoxMode, Instances
from torch.utils.data import DataLoader, Dataset

from ..data import ContrastMaskDatasetMapper
from ..data.images import read_image

__all__ = ["BoxMask", "predict_box_masks"]

_MASK_THRESHOLD = 0.5
# Masks of the size of the image exist for this many boxes at once.
_BOXES_PER_PASTE = 64


class BoxMask(NamedTuple):
    """The mask of one box.

    Attributes:
        segmentation: compressed RLE with "counts" as str; None if no pixel is in the mask.
        score: mean probability of the cells in the mask, 0.5 to 1; 0 if there are none.
    """

    segmentation: Optional[dict]
    score: float


def predict_box_masks(
    cfg, model, records, *, batch_size=1, num_workers=0
) -> Iterator[Tuple[dict, Optional[List[BoxMask]], str]]:
    """Predict a mask for every annotation of every record.

    Args:
        cfg (CfgNode): for the test transforms.
        model (GeneralizedRCNN): in evaluation mode, with a mask branch.
        records (list[dict]): images in Detectron2's dataset format; "category_id" is the model's
            class. Each has at least one annotation.
        batch_size (int): images at a time.
        num_workers (int): processes that read images.

    Yields:
        tuple: the record; one mask for each annotation, in order, or None if the image cannot be
        used; and why.
    """
    loader = DataLoader(
        _BoxDataset(cfg, records),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,
    )
    for batch in loader:
        inputs = [x for x in batch if "problem" not in x]
        masks = iter(_predict_batch(model, inputs) if inputs else ())
        for x in batch:
            record = records[x["index"]]
            if "problem" in x:
                yield record, None, x["problem"]
            else:
                yield record, next(masks), ""


class _BoxDataset(Dataset):
    """Model inputs with "boxes" (N, 4) XYXY in the image file, and given "instances"."""

    def __init__(self, cfg, records):
        mapper = ContrastMaskDatasetMapper(cfg, is_train=False)
        self._augmentations = mapper.augmentations
        self._format = mapper.image_format
        self._records = records

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        record = self._records[index]
        try:
            image = read_image(record["file_name"], format=self._format)
            utils.check_image_size(record, image)
        except ValueError as error:
            return {"index": index, "problem": str(error)}
        height, width = image.shape[:2]
        boxes = np.array(
            [
                BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS)
                for x in record["annotations"]
            ],
            dtype=np.float64,
        ).clip(0, [width, height] * 2)
        augmented = T.AugInput(image)
        transforms = self._augmentations(augmented)
        instances = Instances(augmented.image.shape[:2])
        instances.pred_boxes = Boxes(torch.as_tensor(transforms.apply_box(boxes)).float())
        instances.pred_classes = torch.tensor([x["category_id"] for x in record["annotations"]])
        return {
            "index": index,
            "image": torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1))),
            "height": height,
            "width": width,
            "boxes": torch.as_tensor(boxes).float(),
            "instances": instances,
        }


@torch.no_grad()
def _predict_batch(model, inputs) -> List[List[BoxMask]]:
    results = model.inference(
        inputs, detected_instances=[x["instances"] for x in inputs], do_postprocess=False
    )
    return [
        _to_box_masks(result.pred_masks[:, 0], x["boxes"], (x["height"], x["width"]))
        for result, x in zip(results, inputs)
    ]


def _to_box_masks(probabilities, boxes, size) -> List[BoxMask]:
    """
    Args:
        probabilities (Tensor): (R, h, w), of the cells of each box.
        boxes (Tensor): (R, 4), XYXY in pixels of the image file.
        size (tuple): height and width of the image file.
    """
    inside = probabilities >= _MASK_THRESHOLD
    scores = (probabilities * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)
    masks = []
    for start in range(0, len(boxes), _BOXES_PER_PASTE):
        chunk = slice(start, start + _BOXES_PER_PASTE)
        pasted = paste_masks_in_image(
            probabilities[chunk],
            Boxes(boxes[chunk].to(probabilities.device)),
            size,
            threshold=_MASK_THRESHOLD,
        )
        pasted = pasted.cpu().numpy().astype(np.uint8)
        for mask, score in zip(pasted, scores[chunk].tolist()):
            masks.append(_to_box_mask(mask, score))
    return masks


def _to_box_mask(mask, score) -> BoxMask:
    if not mask.any():
        return BoxMask(None, 0.0)
    rle = mask_util.encode(np.asfortranarray(mask))
    segmentation = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
    return BoxMask(segmentation, round(score, 4))
