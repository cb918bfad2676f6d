"""Looking over an annotation file: all findings at once, and what each class has."""

from dataclasses import dataclass, field
from typing import List, Optional, Tuple

import numpy as np
import pycocotools.mask as mask_util
from tabulate import tabulate

from .annotation_values import ReadingOptions
from .checks import check_image_files
from .class_split import ClassSplit
from .coco_format import Annotations, load_json, paused_garbage_collection, read_annotations
from .images import ImageReader
from .masks import to_rle
from .reading_report import AnnotationFileError, ReadingReport

__all__ = ["ClassStatistics", "Inspection", "inspect_annotation_file"]

_HEADERS = (
    "class",
    "role",
    "instances",
    "with a mask",
    "median box (px)",
    "median mask (px)",
    "mask / box",
)


@dataclass
class ClassStatistics:
    """What one class has in the file; crowds and what is left out do not count.

    Attributes:
        box_sizes: (width, height) of each instance's box, in pixels.
        mask_areas: area of each mask, in pixels.
        num_instances, num_masks: as the names say.
    """

    box_sizes: List[Tuple[float, float]] = field(default_factory=list)
    mask_areas: List[float] = field(default_factory=list)

    @property
    def num_instances(self) -> int:
        return len(self.box_sizes)

    @property
    def num_masks(self) -> int:
        return len(self.mask_areas)

    def medians(self) -> List[str]:
        """Median box, median mask, and mask relative to box; "-" where there is none."""
        if not self.num_instances:
            return ["-", "-", "-"]
        width, height = np.median(np.array(self.box_sizes, dtype=float), axis=0)
        if not self.num_masks:
            return [f"{width:.0f} x {height:.0f}", "-", "-"]
        area = np.median(self.mask_areas)
        return [f"{width:.0f} x {height:.0f}", f"{area:.0f}", f"{area / (width * height):.2f}"]


@dataclass
class Inspection:
    """Result of :func:`inspect_annotation_file`.

    Attributes:
        class_names: by contiguous id; empty if the file cannot be read.
        statistics: one for each class, in the same order.
        report: all findings.
        records: the sound part of the file in Detectron2's dataset format.
        annotations: what was read; None if the file cannot be read.
        content: of the file, as it is; None if it cannot be read.
    """

    class_names: List[str]
    statistics: List[ClassStatistics]
    report: ReadingReport
    records: List[dict]
    annotations: Optional[Annotations] = None
    content: Optional[dict] = None

    def table_of_classes(self, class_split: Optional[ClassSplit] = None) -> str:
        """
        Args:
            class_split: None where it could not be made; roles are then "?".

        Returns:
            str: a table of the classes, and a line with the sums.
        """
        roles = {}
        if class_split is not None:
            roles = {x: class_split.role(i) for i, x in enumerate(class_split.class_names)}
        rows = [
            [name, roles.get(name, "?"), x.num_instances, x.num_masks, *x.medians()]
            for name, x in zip(self.class_names, self.statistics)
        ]
        table = tabulate(
            rows,
            headers=_HEADERS,
            tablefmt="pipe",
            disable_numparse=True,
            colalign=("left", "left", *["right"] * 5),
        )
        num_instances = sum(x.num_instances for x in self.statistics)
        num_masks = sum(x.num_masks for x in self.statistics)
        return (
            f"{table}\n{len(rows)} classes, {num_instances} instances, {num_masks} with a mask, "
            f"in {len(self.records)} usable images"
        )

    def table_of_findings(self) -> str:
        return self.report.table() if self.report.findings else "No problems found."


@paused_garbage_collection()
def inspect_annotation_file(
    json_file: str,
    image_root: str,
    options: Optional[ReadingOptions] = None,
    reader: Optional[ImageReader] = None,
) -> Inspection:
    """Find everything in a COCO-format file that stops training or deserves a look.

    The file is read by the code that reads it for training, which goes on after an error here.

    Args:
        json_file (str): path of the annotation file.
        image_root (str): folder of the images. Their headers are read, not their pixels.
        options (ReadingOptions): how crowds and boxes are meant.
        reader (ImageReader): that images are read with later.

    Returns:
        Inspection
    """
    report = ReadingReport(json_file, stop_at_errors=False)
    try:
        content = load_json(json_file)
        annotations = read_annotations(
            json_file, image_root, options=options, report=report, content=content
        )
    except AnnotationFileError as error:
        report.error(str(error).removeprefix(f"{json_file}: "))
        return Inspection([], [], report, [])
    records = check_image_files(annotations, reader or ImageReader("RGB"))
    statistics = [ClassStatistics() for _ in annotations.class_names]
    for record in annotations.records:
        for x in record["annotations"]:
            if x["iscrowd"]:
                continue
            numbers = statistics[x["category_id"]]
            numbers.box_sizes.append(tuple(x["bbox"][2:]))
            if "segmentation" in x:
                rle = to_rle(x["segmentation"], record["height"], record["width"])
                numbers.mask_areas.append(float(mask_util.area(rle)))
    if not report.errors:  # else they may only follow from an error
        used = {x["category_id"] for r in annotations.records for x in r["annotations"]}
        for category, name in enumerate(annotations.class_names):
            if category not in used:  # one with crowds only has had its warning
                report.warn("class without instances", f"'{name}'")
        for record in annotations.records:
            if not record["annotations"]:
                where = f"image {record['image_id']!r}"
                report.warn("image without annotations, left out of training", where)
    names = annotations.class_names
    return Inspection(names, statistics, report, records, annotations, content)
