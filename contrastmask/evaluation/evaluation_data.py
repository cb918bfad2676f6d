"""What an evaluation compared."""

from dataclasses import dataclass
from typing import Dict, List

import numpy as np


@dataclass
class EvaluationData:
    """Ground truth, detections and precision of one evaluation.

    Attributes:
        images: image id -> image of the annotation file.
        annotations: ground truth.
        detections: COCO results, with the category ids of the annotation file.
        category_ids: category id of each contiguous class id.
        precisions: "bbox" and "segm" -> (T, R, K, A) from `coco_precision`.
    """

    images: Dict[object, dict]
    annotations: List[dict]
    detections: List[dict]
    category_ids: List[int]
    precisions: Dict[str, np.ndarray]
