"""Data: reading partially masked annotations, the classes of a model, and the dataset mapper."""

from .checks import check_all, check_classes, check_supervision
from .class_split import ClassSplit, resolve_class_split
from .coco_format import Annotations, read_annotations
from .dataset_mapper import ContrastMaskDatasetMapper, SkipUnreadable
from .datasets import (
    annotations_of,
    class_names_of,
    model_class_names,
    register_coco_format,
    register_datasets,
    set_num_classes,
    test_records,
    to_model_classes,
    training_records,
)
from .loader import TrainingLoader
from .reading_report import AnnotationFileError
from .supervision import class_split_from_config
