"""Evaluation of base, novel and all classes: AP of detections, IoU at ground-truth boxes."""

from .coco_eval import coco_precision
from .evaluator import ContrastMaskEvaluator, EvaluationModel
from .results import format_results_table, read_results_json, write_results_json
