"""AP of detections, and IoU of masks at ground-truth boxes, for base, novel and all classes."""

import itertools
import json
import logging
import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate
from torch import nn

from ..data import ClassSplit
from ..data.coco_format import AnnotationFile
from ..predictor import detect, encode, masks_for_boxes
from .coco_eval import coco_precision, group_metrics, harmonic_mean, resolve_backend
from .ground_truth import count_missing_masks, evaluation_annotations
from .results import GROUPS, group_key

logger = logging.getLogger(__name__)

_COCO_MAX_DETS = 100


class MasksAtGroundTruthBoxes(nn.Module):
    """
    A detector for evaluation: its outputs also have "gt_box_masks", a list of :class:`BoxMask` for
    the "annotations" of the input. Both come from the same features.
    """

    def __init__(self, model: nn.Module):
        """
        Args:
            model (GeneralizedRCNN): with a mask branch, perhaps wrapped for data parallel training.
        """
        super().__init__()
        self.model = model
        self.train(model.training)  # the state that evaluation restores

    def forward(self, inputs: List[dict]) -> List[dict]:
        """
        Args:
            inputs: from :class:`ContrastMaskDatasetMapper` for evaluation.
        """
        model = self.model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        encoded = encode(model, inputs)
        annotations = [x.get("annotations", ()) for x in inputs]
        masks = masks_for_boxes(
            model,
            encoded,
            [np.array([x["bbox"] for x in xs]).reshape(-1, 4) for xs in annotations],
            [[x["category_id"] for x in xs] for xs in annotations],
        )
        instances = detect(model, encoded)
        return [{"instances": x, "gt_box_masks": y} for x, y in zip(instances, masks)]


@dataclass
class EvaluationData:
    """What one evaluation compared.

    Attributes:
        images: image id -> image of the annotation file.
        annotations: ground truth.
        detections: COCO results, with the category ids of the annotation file.
        category_ids: category id of each contiguous class id.
        precisions: "bbox" and "segm" -> (T, R, K, A) from `coco_precision`.
        gt_box_masks: of the objects with a mask: "category_id" (contiguous), "bbox" (XYXY),
            "file_name", the RLEs "truth" and "predicted", and their "iou".
    """

    images: Dict[object, dict]
    annotations: List[dict]
    detections: List[dict]
    category_ids: List[int]
    precisions: Dict[str, np.ndarray]
    gt_box_masks: List[dict]


class ContrastMaskEvaluator(DatasetEvaluator):
    """COCO evaluation that reports base, novel and all classes from one pass per type of IoU.

    `evaluate` returns, like Detectron2's `COCOEvaluator`, "bbox" and "segm" (AP, AP50, AP75, APs,
    APm, APl of all classes, in percent, and "AP-<class name>" for each class), and in the same form

    - "bbox-base", "bbox-novel", "segm-base", "segm-novel";
    - "segm-harmonic": harmonic mean of base and novel mask AP (key "AP" only);
    - "gt-box-mask", "gt-box-mask-base", "gt-box-mask-novel": the key "IoU" is the mean IoU, in
      percent, of the masks predicted for ground-truth boxes of objects that have a mask, crowds
      left out; "IoU-<class name>" is that of one class. Only with the outputs of
      :class:`MasksAtGroundTruthBoxes`;
    - with `eval_filled_boxes`: "segm-filled-box", "segm-filled-box-base" and
      "segm-filled-box-novel": mask AP of the same detections with their boxes as masks.

    A number is NaN where it cannot be measured: no detections at all, no ground truth, an empty
    group. Mask AP of a class is NaN, with a warning that names it, if some of its annotations have
    no mask; the class then does not count in the mask AP of its group and of all classes.
    """

    def __init__(
        self,
        dataset_name: str,
        class_split: ClassSplit,
        tasks: Optional[Sequence[str]] = None,
        distributed: bool = True,
        output_dir: Optional[str] = None,
        *,
        max_dets_per_image: Optional[int] = None,
        backend: str = "auto",
        eval_filled_boxes: bool = False,
    ):
        """
        Args:
            dataset_name: a registered dataset. If its metadata has no "json_file", it is converted
                to COCO format in `output_dir`, again for each process.
            class_split: base and novel classes of this dataset.
            tasks: "bbox" and/or "segm"; None: what the predictions have.
            distributed: gather the predictions of all ranks, and evaluate on rank 0.
            output_dir: where detections are saved, in coco_instances_results.json.
            max_dets_per_image: None is COCO's limit, 100.
            backend: library that computes precision, see :func:`coco_precision`.
            eval_filled_boxes: also evaluate boxes as masks (one more pass).

        Raises:
            ValueError: unknown task or backend, a class split of other classes, or an annotation
                file that is not sound.
            ImportError: the backend asked for by name is not installed.
        """
        unknown = set(tasks or ()) - {"bbox", "segm"}
        if unknown:
            raise ValueError(f"tasks can be 'bbox' and 'segm', got {sorted(unknown)}.")
        self._backend = resolve_backend(backend)  # complain before the work, not after it
        self._tasks = tasks
        self._class_split = class_split
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = max_dets_per_image or _COCO_MAX_DETS
        self._eval_filled_boxes = eval_filled_boxes
        self._metadata = MetadataCatalog.get(dataset_name)
        self._dataset = _read_dataset(dataset_name, output_dir)
        _check_class_names(dataset_name, self._metadata.thing_classes, class_split.class_names)
        self._images = {x["id"]: x for x in self._dataset["images"]}
        self._detections, self._precisions, self._gt_box_masks = [], {}, []
        self._annotations = None  # of test-dev
        if "annotations" in self._dataset:
            self._annotations = evaluation_annotations(
                AnnotationFile(self._metadata.json_file, self._dataset)
            )
        if any("neg_category_ids" in image for image in self._dataset["images"]):
            logger.warning(
                f"{self._metadata.json_file} is federated (LVIS): in each image only some classes "
                "are annotated, and the AP given here counts detections of all others as wrong. "
                "For LVIS AP see docs/CUSTOM_DATA.md"
            )
        self.reset()

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: List[dict], outputs: List[dict]) -> None:
        """
        Args:
            inputs: of the model, with "image_id"; with "annotations" for "gt_box_masks".
            outputs: "instances" (Instances), and perhaps "gt_box_masks".
        """
        for x, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            prediction = {
                "image_id": x["image_id"],
                "instances": instances_to_coco_json(instances, x["image_id"]),
            }
            if "gt_box_masks" in output:
                prediction["gt_box_masks"] = _compare_masks(x, output["gt_box_masks"])
            self._predictions.append(prediction)

    def evaluate(self, img_ids: Optional[Sequence] = None) -> Dict[str, Dict[str, float]]:
        """
        Args:
            img_ids: ids of the images to evaluate on; None for all.

        Returns:
            Task -> metric -> number; nothing on other ranks than 0, and without annotations.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(predictions, dst=0)
            if not comm.is_main_process():
                return {}
            predictions = list(itertools.chain(*gathered))
        if not predictions:
            logger.warning("The evaluator did not receive any predictions.")
            return {}
        detections = list(itertools.chain(*[x["instances"] for x in predictions]))
        self._detections = self._with_dataset_category_ids(detections)
        self._save_detections()
        if self._annotations is None:
            logger.info("Annotations are not available for evaluation.")
            return {}
        if img_ids is not None:
            predictions = [x for x in predictions if x["image_id"] in set(img_ids)]
        compared = [x["gt_box_masks"] for x in predictions if "gt_box_masks" in x]
        self._gt_box_masks = list(itertools.chain(*compared))
        return {
            **self._evaluate_detections(img_ids),
            **(self._evaluate_gt_box_masks() if compared else {}),
        }

    def evaluation_data(self) -> EvaluationData:
        """What the last evaluation compared, for a report."""
        return EvaluationData(
            images=self._images,
            annotations=self._annotations,
            detections=self._detections,
            category_ids=self._category_ids(),
            precisions=self._precisions,
            gt_box_masks=self._gt_box_masks,
        )

    def _save_detections(self):
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            logger.info(f"Saving results to {path}")
            with PathManager.open(path, "w") as f:
                json.dump(self._detections, f)

    def _evaluate_detections(self, image_ids):
        logger.info(f"Evaluating predictions with {self._backend}...")
        detections = self._detections
        tasks = self._tasks
        if tasks is None:
            has_masks = not detections or any("segmentation" in x for x in detections)
            tasks = ("bbox", "segm") if has_masks else ("bbox",)
        results, self._precisions = {}, {}
        for task in sorted(tasks):
            precision = self._precision(detections, task, image_ids)
            if precision is not None:
                self._precisions[task] = precision
            self._add_groups(results, task, precision)
            for index, name in enumerate(self._class_split.class_names):
                results[task][f"AP-{name}"] = group_metrics(precision, [index])["AP"]
        self._log_classes(results)
        if "segm" in tasks:
            aps = (results[f"segm-{group}"]["AP"] for group in ("base", "novel"))
            results["segm-harmonic"] = {"AP": harmonic_mean(*aps)}
            if self._eval_filled_boxes:
                precision = self._precision(
                    boxes_as_masks(detections, self._images), "segm", image_ids
                )
                self._add_groups(results, "segm-filled-box", precision)
        return results

    def _add_groups(self, results, task, precision):
        split = self._class_split
        groups = {"all": range(len(split.class_names)), "base": split.base, "novel": split.novel}
        for group, class_ids in groups.items():
            results[group_key(task, group)] = group_metrics(precision, class_ids)

    def _log_classes(self, results):
        titles = {"bbox": "box AP", "segm": "mask AP"}
        tasks = [task for task in titles if task in results]
        names = self._class_split.class_names
        rows = [
            [name, self._class_split.role(i), *(results[task][f"AP-{name}"] for task in tasks)]
            for i, name in enumerate(names)
        ]
        headers = ["class", "role", *(titles[task] for task in tasks)]
        table = tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".2f")
        logger.info(f"AP of each class of {self._metadata.name}:\n{table}")

    def _evaluate_gt_box_masks(self):
        split = self._class_split
        ious, of_class = defaultdict(list), defaultdict(list)
        for x in self._gt_box_masks:
            ious["all"].append(x["iou"])
            ious[split.role(x["category_id"])].append(x["iou"])
            of_class[x["category_id"]].append(x["iou"])
        results = {group_key("gt-box-mask", x): {"IoU": _mean_percent(ious[x])} for x in GROUPS}
        for i, name in enumerate(split.class_names):
            results["gt-box-mask"][f"IoU-{name}"] = _mean_percent(of_class[i])
        return results

    def _precision(self, detections, iou_type, image_ids):
        """Precision (T, R, K, A), K in the order of contiguous ids, or None without detections."""
        if len(detections) == 0:
            return None
        annotations = self._annotations
        if iou_type == "segm":
            annotations = self._annotations_with_masks()
        return coco_precision(
            {
                "images": self._dataset["images"],
                "annotations": annotations,
                "categories": self._dataset["categories"],
            },
            detections,
            iou_type,
            category_ids=self._category_ids(),
            image_ids=image_ids,
            max_dets=self._max_dets,
            backend=self._backend,
        )

    def _category_ids(self):
        """Ids of the categories in the annotation file, in the order of contiguous ids."""
        num_classes = len(self._metadata.thing_classes)
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:  # Detectron2's LVIS datasets, and datasets converted to COCO format
            category_ids = sorted(x["id"] for x in self._dataset["categories"])
            if len(category_ids) != num_classes:
                raise ValueError(
                    f"Dataset '{self._metadata.name}' has {num_classes} classes, but "
                    f"{self._metadata.json_file} has {len(category_ids)} categories, and there is "
                    "no 'thing_dataset_id_to_contiguous_id' in the metadata of the dataset."
                )
            return category_ids
        dataset_id_of = {contiguous: dataset_id for dataset_id, contiguous in mapping.items()}
        return [dataset_id_of[i] for i in range(num_classes)]

    def _with_dataset_category_ids(self, detections):
        category_ids = self._category_ids()
        largest = max((x["category_id"] for x in detections), default=0)
        if largest >= len(category_ids):
            raise ValueError(
                f"A detection has class {largest}, but dataset '{self._metadata.name}' has "
                f"{len(category_ids)} classes. Check MODEL.ROI_HEADS.NUM_CLASSES."
            )
        return [{**x, "category_id": category_ids[x["category_id"]]} for x in detections]

    def _annotations_with_masks(self):
        """Annotations of the classes whose annotations all have a mask."""
        num_missing = count_missing_masks(self._annotations)
        if not num_missing:
            return self._annotations
        names = dict(zip(self._category_ids(), self._metadata.thing_classes))
        counts = ", ".join(
            f"{names.get(category_id, category_id)} ({number})"
            for category_id, number in sorted(num_missing.items())
        )
        logger.warning(
            f"Mask AP cannot be measured for classes whose annotations in "
            f"{self._metadata.json_file} lack masks, and leaves them out: {counts} "
            "(in brackets: annotations without a mask)."
        )
        return [x for x in self._annotations if x["category_id"] not in num_missing]


def boxes_as_masks(detections: List[dict], images: Dict[object, dict]) -> List[dict]:
    """Box masks: the reference that a mask head has to beat.

    Args:
        detections: COCO results with "image_id", "category_id", "score" and "bbox" (XYWH, pixels);
            not changed.
        images: image id -> COCO image with "height" and "width".

    Returns:
        The detections with the RLE of the box within the image as "segmentation".
    """
    sizes = [(images[x["image_id"]]["height"], images[x["image_id"]]["width"]) for x in detections]
    rles = [
        mask_util.frPyObjects(np.array([x["bbox"]], dtype=np.float64), *size)[0]
        for x, size in zip(detections, sizes)
    ]
    return [{**x, "segmentation": rle} for x, rle in zip(detections, rles)]


def _compare_masks(x, masks):
    """Ground truth and prediction for each annotation of an input, as in `EvaluationData`."""
    return [
        {
            **{k: annotation[k] for k in ("category_id", "bbox")},
            "file_name": x["file_name"],
            "truth": annotation["segmentation"],
            "predicted": mask.mask,
            "iou": float(mask_util.iou([mask.mask], [annotation["segmentation"]], [0])[0, 0]),
        }
        for annotation, mask in zip(x.get("annotations", ()), masks)
    ]


def _mean_percent(values):
    return 100 * float(np.mean(values)) if values else float("nan")


def _read_dataset(name, output_dir):
    """The content of the annotation file of a dataset, which is made if there is none."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") is None:
        if output_dir is None:
            raise ValueError(f"Dataset '{name}' has no annotation file: give output_dir for one")
        # Detectron2 would take a file that an earlier run left in output_dir for the dataset.
        path = os.path.join(output_dir, f"{name}_coco_format.json")
        convert_to_coco_json(name, path, allow_cached=False)
        metadata.json_file = path
    with PathManager.open(metadata.json_file, encoding="utf-8-sig") as f:
        return json.load(f)


def _check_class_names(dataset_name, dataset_classes, split_classes):
    if list(dataset_classes) == list(split_classes):
        return
    differing = sorted(set(dataset_classes) ^ set(split_classes))
    raise ValueError(
        f"The class split is not one of dataset '{dataset_name}': "
        + (f"only one of the two has {differing}." if differing else "the class order differs.")
    )
