from .coco_eval import coco_precision
from .evaluator import ContrastMaskEvaluator
from .results import format_results_table, read_results_json, write_results_json
