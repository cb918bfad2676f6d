"""Data: class splits, loading partially masked annotations, and the dataset mapper."""

from .checks import check_num_classes, check_supervision
from .class_split import ClassSplit, class_split_from_config, resolve_class_split
from .coco_format import AnnotationFileError, load_partial_coco
from .dataset_mapper import ContrastMaskDatasetMapper
from .datasets import register_coco_format, register_datasets
from .loader import TrainingLoader
