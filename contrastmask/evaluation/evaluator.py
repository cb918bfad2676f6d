"""Box and mask AP of base, novel and all classes."""

import itertools
import json
import os

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.file_io import PathManager

from ..data.coco_format import AnnotationFile
from .coco_eval import coco_precision, resolve_backend
from .evaluation_data import EvaluationData
from .filled_boxes import fill_boxes
from .ground_truth import count_missing_masks, evaluation_annotations
from .group_metrics import METRICS, group_metrics, harmonic_mean
from .results import group_key


class _PrecisionOnly:
    """What `COCOEvaluator._derive_coco_results` reads from a COCOeval object."""

    def __init__(self, precision):
        metrics = group_metrics(precision, range(precision.shape[2]))
        self.stats = [metrics[m] / 100 for m in METRICS]
        self.eval = {"precision": precision[..., None]}  # with the axis of detection limits


class ContrastMaskEvaluator(COCOEvaluator):
    """COCO evaluation that reports base, novel and all classes from one pass per type of IoU.

    `evaluate` returns what Detectron2's evaluator does (keys "bbox" and "segm": all classes, and
    "AP-<class name>" for each class), and in the same form, each a flat dict of AP, AP50, AP75,
    APs, APm, APl in percent:

    - "bbox-base", "bbox-novel", "segm-base", "segm-novel";
    - "segm-harmonic": harmonic mean of base and novel mask AP (key "AP" only);
    - with `eval_filled_boxes`: "segm-filled-box", "segm-filled-box-base" and
      "segm-filled-box-novel": mask AP of the same detections with their filled boxes for masks.

    A number is NaN where it cannot be measured: no detections at all, no ground truth, an empty
    group. Mask AP of a class is NaN, with a warning that names it, if some of its annotations have
    no mask; the class then does not count in the mask AP of its group and of all classes.
    """

    def __init__(
        self,
        dataset_name,
        class_split,
        tasks=None,
        distributed=True,
        output_dir=None,
        *,
        max_dets_per_image=None,
        backend="auto",
        eval_filled_boxes=False,
    ):
        """
        Args:
            dataset_name (str): a registered dataset. If its metadata has no "json_file", it is
                converted to COCO format in `output_dir`, anew for each process.
            class_split (ClassSplit): base and novel classes of this dataset.
            tasks (tuple[str] or None): "bbox" and/or "segm"; None: what the predictions have.
            distributed (bool): gather the predictions of all ranks, and evaluate on rank 0.
            output_dir (str or None): where predictions are saved, as `COCOEvaluator` does.
            max_dets_per_image (int or None): None is COCO's limit, 100.
            backend (str): library that computes precision, see :func:`coco_precision`.
            eval_filled_boxes (bool): also evaluate filled boxes as masks (one more pass).

        Raises:
            ValueError: unknown task or backend, a class split of other classes, or an annotation
                file that is not sound.
            ImportError: the backend asked for by name is not installed.
        """
        unknown = set(tasks or ()) - {"bbox", "segm"}
        if unknown:
            raise ValueError(f"tasks can be 'bbox' and 'segm', got {sorted(unknown)}.")
        self._backend = resolve_backend(backend)  # complain before the work, not after it
        self._class_split = class_split
        self._eval_filled_boxes = eval_filled_boxes
        _convert_to_coco_format(dataset_name, output_dir)
        super().__init__(
            dataset_name,
            tasks,
            distributed,
            output_dir,
            max_dets_per_image=max_dets_per_image,
            use_fast_impl=False,
        )
        _check_class_names(dataset_name, self._metadata.thing_classes, class_split.class_names)
        self._detections, self._precisions = [], {}
        if self._do_evaluation:
            self._annotations = evaluation_annotations(
                AnnotationFile(self._metadata.json_file, self._coco_api.dataset)
            )
            if any("neg_category_ids" in image for image in self._coco_api.dataset["images"]):
                self._logger.warning(
                    f"{self._metadata.json_file} is federated (LVIS): in each image only some "
                    "classes are annotated, and the AP given here counts detections of all others "
                    "as wrong. For LVIS AP see docs/CUSTOM_DATA.md"
                )

    def evaluation_data(self):
        """What the last evaluation compared, for a report.

        Returns:
            EvaluationData:
        """
        return EvaluationData(
            images=self._coco_api.imgs,
            annotations=self._annotations,
            detections=self._detections,
            category_ids=self._category_ids(),
            precisions=self._precisions,
        )

    def _tasks_from_predictions(self, predictions):
        if len(predictions) == 0:
            return ["bbox", "segm"]
        return super()._tasks_from_predictions(predictions)

    def _eval_predictions(self, predictions, img_ids=None):
        detections = list(itertools.chain(*[x["instances"] for x in predictions]))
        tasks = self._tasks or self._tasks_from_predictions(detections)
        detections = self._with_dataset_category_ids(detections)
        self._detections, self._precisions = detections, {}

        if self._output_dir:
            file_path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info(f"Saving results to {file_path}")
            with PathManager.open(file_path, "w") as f:
                json.dump(detections, f)
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return

        self._logger.info(f"Evaluating predictions with {self._backend}...")
        class_names = self._metadata.thing_classes
        for task in sorted(tasks):
            precision = self._precision(detections, task, img_ids)
            if precision is not None:
                self._precisions[task] = precision
            coco_eval = None if precision is None else _PrecisionOnly(precision)
            self._results[task] = self._derive_coco_results(coco_eval, task, class_names)
            self._add_group_results(task, precision)
        if "segm" in tasks:
            self._results["segm-harmonic"] = {
                "AP": harmonic_mean(
                    self._results["segm-base"]["AP"], self._results["segm-novel"]["AP"]
                )
            }
            if self._eval_filled_boxes:
                filled = fill_boxes(detections, self._coco_api.imgs)
                precision = self._precision(filled, "segm", img_ids)
                all_classes = range(len(class_names))
                self._results["segm-filled-box"] = group_metrics(precision, all_classes)
                self._add_group_results("segm-filled-box", precision)

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        # Detectron2 leaves classes out if there are no detections, or one class only.
        for index, name in enumerate(class_names):
            if f"AP-{name}" not in results:
                precision = None if coco_eval is None else coco_eval.eval["precision"][..., -1]
                results[f"AP-{name}"] = group_metrics(precision, [index])["AP"]
        return results

    def _add_group_results(self, task, precision):
        for group in ("base", "novel"):
            class_ids = getattr(self._class_split, group)
            self._results[group_key(task, group)] = group_metrics(precision, class_ids)

    def _precision(self, detections, iou_type, image_ids):
        """Precision (T, R, K, A), K in the order of contiguous ids, or None without detections."""
        if len(detections) == 0:
            return None
        annotations = self._annotations
        if iou_type == "segm":
            annotations = self._annotations_with_masks()
        return coco_precision(
            {
                "images": self._coco_api.dataset["images"],
                "annotations": annotations,
                "categories": self._coco_api.dataset["categories"],
            },
            detections,
            iou_type,
            category_ids=self._category_ids(),
            image_ids=image_ids,
            max_dets=self._max_dets_per_image[-1],
            backend=self._backend,
        )

    def _category_ids(self):
        """Ids of the categories in the annotation file, in the order of contiguous ids."""
        num_classes = len(self._metadata.thing_classes)
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:  # Detectron2's LVIS datasets, and datasets converted to COCO format
            category_ids = sorted(self._coco_api.getCatIds())
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
        self._logger.warning(
            f"Mask AP cannot be measured for classes whose annotations in "
            f"{self._metadata.json_file} lack masks, and leaves them out: {counts} "
            "(in brackets: annotations without a mask)."
        )
        return [x for x in self._annotations if x["category_id"] not in num_missing]


def _convert_to_coco_format(dataset_name, output_dir):
    # Detectron2 would take a file that an earlier run left in output_dir for the dataset.
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("json_file") is None and output_dir is not None:
        path = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
        convert_to_coco_json(dataset_name, path, allow_cached=False)
        metadata.json_file = path


def _check_class_names(dataset_name, dataset_classes, split_classes):
    if list(dataset_classes) == list(split_classes):
        return
    differing = sorted(set(dataset_classes) ^ set(split_classes))
    raise ValueError(
        f"The class split is not one of dataset '{dataset_name}': "
        + (f"only one of the two has {differing}." if differing else "the class order differs.")
    )
