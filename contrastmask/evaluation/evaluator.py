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
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import BitMasks
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate
from torch import nn

from ..data import ClassSplit
from ..modeling.cam import cam_auc
from ..modeling.mask_head import crop_mask_targets
from ..predictor import detect, encode, masks_and_cams_for_boxes
from .coco_eval import METRICS, coco_precision, group_metrics, harmonic_mean, resolve_backend
from .ground_truth import read_ground_truth
from .results import GROUPS, group_key

logger = logging.getLogger(__name__)

_COCO_MAX_DETS = 100
# Side of the grid on which CAMs are compared with masks.
_CAM_CELLS = 28


class EvaluationModel(nn.Module):
    """
    A detector for evaluation. Its outputs also have "gt_box_masks", a list of :class:`BoxMask` for
    the "annotations" of the input, and "gt_box_cams", their CAMs, from the same features. An input
    with a "problem" instead of an "image" is an image that cannot be read, and gets an empty
    output.
    """

    def __init__(self, model: nn.Module, *, gt_box_masks: bool = True):
        """
        Args:
            model (nn.Module): in Detectron2's form, perhaps wrapped for data parallel training.
            gt_box_masks: predict masks for ground-truth boxes, if it is a GeneralizedRCNN; needs a
                mask branch.
        """
        super().__init__()
        self.model = model
        self._detector = getattr(model, "module", model)
        self.gt_box_masks = gt_box_masks and isinstance(self._detector, GeneralizedRCNN)
        self.train(model.training)  # the state that evaluation restores

    def forward(self, inputs: List[dict]) -> List[dict]:
        """
        Args:
            inputs: from the mapper for evaluation.
        """
        usable = [x for x in inputs if "problem" not in x]
        outputs = iter(self._forward(usable) if usable else ())
        return [{} if "problem" in x else next(outputs) for x in inputs]

    def _forward(self, inputs):
        if not self.gt_box_masks:
            return self.model(inputs)
        model = self._detector
        encoded = encode(model, inputs)
        annotations = [x.get("annotations", ()) for x in inputs]
        masks, cams = masks_and_cams_for_boxes(
            model,
            encoded,
            [np.array([x["bbox"] for x in xs]).reshape(-1, 4) for xs in annotations],
            [[x["category_id"] for x in xs] for xs in annotations],
        )
        instances = detect(model, encoded)
        return [
            {"instances": x, "gt_box_masks": y, "gt_box_cams": z}
            for x, y, z in zip(instances, masks, cams)
        ]


@dataclass
class EvaluationData:
    """What one evaluation compared.

    Attributes:
        images: image id -> its "height" and "width".
        annotations: ground truth.
        detections: COCO results, with the category ids of the annotation file.
        category_ids: category id of each class of the model; None for one that the file lacks.
        precisions: "bbox" and "segm" -> (T, R, K, A) from `coco_precision`.
        gt_box_masks: of the objects with a mask: "category_id" (contiguous), "bbox" (XYXY),
            "file_name", the RLEs "truth" and "predicted", their "iou", and the "cam_auc" of
            :func:`cam_auc`, NaN without CAMs.
    """

    images: Dict[object, dict]
    annotations: List[dict]
    detections: List[dict]
    category_ids: List[Optional[int]]
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
      left out; "IoU-<class name>" is that of one class; "CAM_AUC" is the mean of :func:`cam_auc`
      for these boxes, in percent. Only with the outputs of :class:`EvaluationModel`;
    - with `eval_filled_boxes`: "segm-filled-box", "segm-filled-box-base" and
      "segm-filled-box-novel": mask AP of the same detections with their boxes as masks.

    Classes of the model and of the dataset are matched by name; those that only one of them has do
    not count. Nor do images that could not be read, which are named and counted.

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
            class_split: the classes of the model.
            tasks: "bbox" and/or "segm"; None: what the predictions have.
            distributed: gather the predictions of all ranks, and evaluate on rank 0.
            output_dir: where detections are saved, in coco_instances_results.json.
            max_dets_per_image: None is COCO's limit, 100.
            backend: library that computes precision, see :func:`coco_precision`.
            eval_filled_boxes: also evaluate boxes as masks (one more pass).

        Raises:
            ValueError: unknown task or backend, a dataset without any class of the model, or an
                annotation file that is not sound.
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
        self._dataset_name = dataset_name
        self._truth = read_ground_truth(dataset_name, class_split.class_names, output_dir)
        self._images = {x["id"]: x for x in self._truth.images}
        self._detections, self._precisions, self._gt_box_masks = [], {}, []
        if self._truth.is_federated:
            logger.warning(
                f"{self._truth.path} is federated (LVIS): in each image only some classes are "
                "annotated, and the AP given here counts detections of all others as wrong. For "
                "LVIS AP see docs/CUSTOM_DATA.md"
            )
        self.reset()

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: List[dict], outputs: List[dict]) -> None:
        """
        Args:
            inputs: of the model, with "image_id"; with "annotations" for "gt_box_masks". One with a
                "problem" is an image that could not be read.
            outputs: "instances" (Instances), and perhaps "gt_box_masks" and "gt_box_cams".
        """
        for x, output in zip(inputs, outputs):
            if "problem" in x:
                self._predictions.append({"image_id": x["image_id"], "problem": x["problem"]})
                continue
            instances = output["instances"].to("cpu")
            prediction = {
                "image_id": x["image_id"],
                "instances": instances_to_coco_json(instances, x["image_id"]),
            }
            if "gt_box_masks" in output:
                prediction["gt_box_masks"] = _compare_masks(x, output)
            self._predictions.append(prediction)

    def evaluate(self, img_ids: Optional[Sequence] = None) -> Dict[str, Dict[str, float]]:
        """
        Args:
            img_ids: ids of the images to evaluate on; None for all.

        Returns:
            Task -> metric -> number; nothing on other ranks than 0, and without annotations.

        Raises:
            ValueError: if no image could be read.
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
        unreadable = {x["image_id"]: x["problem"] for x in predictions if "problem" in x}
        if len(unreadable) == len(predictions):
            raise ValueError(
                f"No image of {self._truth.path} could be read: {next(iter(unreadable.values()))}"
            )
        if unreadable:
            logger.error(
                f"{len(unreadable)} of {len(predictions)} images could not be read and do not "
                f"count: {'; '.join(unreadable.values())}"
            )
            img_ids = set(self._images if img_ids is None else img_ids) - unreadable.keys()
            img_ids = [x for x in self._images if x in img_ids]
            predictions = [x for x in predictions if "problem" not in x]
        detections = list(itertools.chain(*[x["instances"] for x in predictions]))
        self._detections = self._with_dataset_category_ids(detections)
        self._save_detections()
        if not self._truth.annotations:
            logger.info(f"{self._truth.path} has no annotations to evaluate with")
            return {}
        if img_ids is not None:
            evaluated = set(img_ids)
            predictions = [x for x in predictions if x["image_id"] in evaluated]
        compared = [x["gt_box_masks"] for x in predictions if "gt_box_masks" in x]
        self._gt_box_masks = list(itertools.chain(*compared))
        return {
            **self._evaluate_detections(img_ids),
            **(self._evaluate_gt_box_masks() if compared else {}),
        }

    def metric_names(self, *, masks: bool = True) -> List[str]:
        """
        What :meth:`evaluate` can measure with these annotations; AP of small, medium and large
        objects may be NaN nevertheless.

        Args:
            masks: whether the model predicts masks.

        Returns:
            list[str]: such as "segm-novel/AP", as in Detectron2's event storage.
        """
        class_of = {x: i for i, x in enumerate(self._truth.category_ids) if x is not None}
        objects = [
            (class_of[x["category_id"]], "segmentation" in x)
            for x in self._truth.annotations
            if x["category_id"] in class_of and not x["iscrowd"]
        ]
        incomplete = {class_of.get(x) for x in self._truth.num_without_mask()}
        classes = {"bbox": {i for i, _ in objects}}
        if masks:
            classes["segm"] = classes["bbox"] - incomplete
            classes["gt-box-mask"] = {i for i, has_mask in objects if has_mask}
            if self._eval_filled_boxes:
                classes["segm-filled-box"] = classes["segm"]
        names = []
        for task, measured in classes.items():
            metrics = ("IoU", "CAM_AUC") if task == "gt-box-mask" else METRICS
            groups = [x for x, class_ids in self._groups.items() if measured & set(class_ids)]
            names += [f"{group_key(task, x)}/{metric}" for x in groups for metric in metrics]
            if task == "segm" and {"base", "novel"} <= set(groups):
                names.append("segm-harmonic/AP")
            if task != "segm-filled-box":
                class_names = [self._class_split.class_names[i] for i in sorted(measured)]
                names += [f"{task}/{metrics[0]}-{name}" for name in class_names]
        return names

    def evaluation_data(self) -> EvaluationData:
        """What the last evaluation compared, for a report."""
        return EvaluationData(
            images=self._images,
            annotations=self._truth.annotations,
            detections=self._detections,
            category_ids=self._truth.category_ids,
            precisions=self._precisions,
            gt_box_masks=self._gt_box_masks,
        )

    def _save_detections(self):
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            logger.info(f"Saving results to {path}")
            with PathManager.open(path, "w") as f:
                f.write(json.dumps(self._detections))  # json.dump is several times slower

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

    @property
    def _groups(self):
        split = self._class_split
        return {"all": range(len(split.class_names)), "base": split.base, "novel": split.novel}

    def _add_groups(self, results, task, precision):
        for group, class_ids in self._groups.items():
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
        logger.info(f"AP of each class of {self._dataset_name}:\n{table}")

    def _evaluate_gt_box_masks(self):
        split = self._class_split
        groups, of_class = defaultdict(list), defaultdict(list)
        for x in self._gt_box_masks:
            groups["all"].append(x)
            groups[split.role(x["category_id"])].append(x)
            of_class[x["category_id"]].append(x["iou"])
        results = {
            group_key("gt-box-mask", group): {
                "IoU": _mean_percent([x["iou"] for x in groups[group]]),
                "CAM_AUC": _mean_percent([x["cam_auc"] for x in groups[group]]),
            }
            for group in GROUPS
        }
        for i, name in enumerate(split.class_names):
            results["gt-box-mask"][f"IoU-{name}"] = _mean_percent(of_class[i])
        return results

    def _precision(self, detections, iou_type, image_ids):
        """Precision (T, R, K, A) of the K classes of the model, or None without detections."""
        if len(detections) == 0:
            return None
        annotations = self._truth.annotations
        if iou_type == "segm":
            annotations = self._annotations_with_masks()
        ids = self._truth.category_ids
        present = [i for i, x in enumerate(ids) if x is not None]
        precision = coco_precision(
            {
                "images": self._truth.images,
                "annotations": annotations,
                "categories": [{"id": ids[i], "name": str(i)} for i in present],
            },
            detections,
            iou_type,
            category_ids=[ids[i] for i in present],
            image_ids=image_ids,
            max_dets=self._max_dets,
            backend=self._backend,
        )
        of_all = np.full((*precision.shape[:2], len(ids), precision.shape[3]), -1.0)
        of_all[:, :, present] = precision
        return of_all

    def _with_dataset_category_ids(self, detections):
        ids = self._truth.category_ids
        largest = max((x["category_id"] for x in detections), default=0)
        if largest >= len(ids):
            raise ValueError(
                f"A detection has class {largest}, but the model has {len(ids)} classes. Check "
                "MODEL.ROI_HEADS.NUM_CLASSES"
            )
        return [
            {**x, "category_id": ids[x["category_id"]]}
            for x in detections
            if ids[x["category_id"]] is not None
        ]

    def _annotations_with_masks(self):
        """Annotations of the classes whose annotations all have a mask."""
        annotations = self._truth.annotations
        num_missing = self._truth.num_without_mask()
        if not num_missing:
            return annotations
        names = dict(zip(self._truth.category_ids, self._class_split.class_names))
        counts = ", ".join(
            f"{names[i]} ({number})" for i, number in sorted(num_missing.items()) if i in names
        )
        logger.warning(
            f"Mask AP cannot be measured for classes whose annotations in {self._truth.path} lack "
            f"masks, and leaves them out: {counts} (in brackets: annotations without a mask)"
        )
        return [x for x in annotations if x["category_id"] not in num_missing]


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


def _compare_masks(x, output):
    """Ground truth and prediction for each annotation of an input, as in `EvaluationData`."""
    annotations, masks = x.get("annotations", ()), output["gt_box_masks"]
    aucs = _cam_aucs(annotations, output.get("gt_box_cams"))
    return [
        {
            **{k: annotation[k] for k in ("category_id", "bbox")},
            "file_name": x["file_name"],
            "truth": annotation["segmentation"],
            "predicted": mask.mask,
            "iou": float(mask_util.iou([mask.mask], [annotation["segmentation"]], [0])[0, 0]),
            "cam_auc": auc,
        }
        for annotation, mask, auc in zip(annotations, masks, aucs)
    ]


def _cam_aucs(annotations, cams):
    if cams is None or not len(annotations):
        return [float("nan")] * len(annotations)
    return cam_auc(cams.cpu(), torch.cat([_crop_mask(x) for x in annotations])).tolist()


def _crop_mask(annotation):
    """(1, C, C) bool. One at a time: masks of the size of a large photograph take much memory."""
    mask = torch.from_numpy(mask_util.decode(annotation["segmentation"]))[None]
    box = torch.tensor([annotation["bbox"]], dtype=torch.float32)
    return crop_mask_targets(BitMasks(mask), torch.tensor([0]), box, _CAM_CELLS)


def _mean_percent(values):
    values = [x for x in values if not np.isnan(x)]
    return 100 * float(np.mean(values)) if values else float("nan")
