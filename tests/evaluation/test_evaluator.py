import contextlib
import copy
import io
import itertools
import json
import logging
from types import SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util
import pytest
import synthetic_coco
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from synthetic_coco import CATEGORY_IDS, CLASS_NAMES, SPLIT

from contrastmask.data import ClassSplit
from contrastmask.evaluation import ContrastMaskEvaluator
from contrastmask.evaluation.coco_eval import BACKENDS
from contrastmask.evaluation.ground_truth import read_ground_truth

METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
GROUPS = {"": range(len(CLASS_NAMES)), "-base": SPLIT.base, "-novel": SPLIT.novel}
NAME = "synthetic_coco"


@pytest.fixture
def dataset():
    return synthetic_coco.make_dataset()


def evaluate(dataset, outputs, folder, split=SPLIT, **kwargs):
    inputs = synthetic_coco.register(dataset, NAME, folder)
    evaluator = ContrastMaskEvaluator(NAME, split, distributed=False, **kwargs)
    evaluator.reset()
    evaluator.process(inputs, outputs)
    return evaluator.evaluate()


def reference(dataset, detections, iou_type, class_ids):
    """Metrics of a pycocotools pass of its own, with `catIds` restricted to the classes."""
    dataset = copy.deepcopy(dataset)
    for annotation in dataset["annotations"]:
        annotation["id"] += 1
    left_out = "bbox" if iou_type == "segm" else "segmentation"
    detections = [{k: v for k, v in x.items() if k != left_out} for x in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        coco_gt = COCO()
        coco_gt.dataset = {"info": {}, **dataset}
        coco_gt.createIndex()
        coco_eval = COCOeval(coco_gt, coco_gt.loadRes(detections), iou_type)
        coco_eval.params.catIds = [CATEGORY_IDS[i] for i in class_ids]
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    return {m: x * 100 if x >= 0 else float("nan") for m, x in zip(METRICS, coco_eval.stats)}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for key in expected:
        assert actual[key] == pytest.approx(expected[key], abs=1e-9, nan_ok=True), key


def assert_all_nan(metrics, keys=METRICS):
    assert list(metrics)[: len(keys)] == list(keys)
    assert all(np.isnan(x) for x in metrics.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_equal_restricted_evaluation(dataset, tmp_path, backend):
    if backend == "hotcoco":
        pytest.importorskip("hotcoco")
    detections = synthetic_coco.make_detections(dataset)
    outputs = synthetic_coco.to_outputs(detections, dataset)
    results = evaluate(dataset, outputs, tmp_path, backend=backend)
    for task, (suffix, class_ids) in itertools.product(["bbox", "segm"], GROUPS.items()):
        expected = reference(dataset, detections, task, class_ids)
        assert np.isfinite(list(expected.values())).all()
        assert_same({m: results[task + suffix][m] for m in METRICS}, expected)
    for index, name in enumerate(CLASS_NAMES):
        expected = reference(dataset, detections, "segm", [index])["AP"]
        assert results["segm"][f"AP-{name}"] == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_all_classes_equal_detectron2(dataset, tmp_path):
    outputs = synthetic_coco.to_outputs(synthetic_coco.make_detections(dataset), dataset)
    for annotation in dataset["annotations"]:
        annotation["id"] += 1
    results = evaluate(dataset, outputs, tmp_path)
    evaluator = COCOEvaluator(NAME, distributed=False, use_fast_impl=False)
    evaluator.reset()
    evaluator.process([{"image_id": x["id"]} for x in dataset["images"]], outputs)
    expected = evaluator.evaluate()
    # Detectron2 takes the classes to be in the order of their ids.
    by_id = sorted(range(len(CLASS_NAMES)), key=CATEGORY_IDS.__getitem__)
    for task in ("bbox", "segm"):
        classes = {f"AP-{CLASS_NAMES[i]}": f"AP-{CLASS_NAMES[k]}" for k, i in enumerate(by_id)}
        same = {k: expected[task][classes.get(k, k)] for k in expected[task]}
        assert_same(results[task], same)


def perfect_detection(annotation, dataset, score):
    (image,) = [x for x in dataset["images"] if x["id"] == annotation["image_id"]]
    mask = mask_util.frPyObjects(annotation["segmentation"], image["height"], image["width"])
    return {
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "score": score,
        "bbox": annotation["bbox"],
        "segmentation": mask_util.merge(mask),
    }


@pytest.fixture(params=BACKENDS)
def found_and(request, dataset, tmp_path):
    """
    Function: changes to a second annotation -> box AP and mask AP if a perfect detection of the
    first one has a lower score than one of the second, which is there with `seen` only.
    """
    if request.param == "hotcoco":
        pytest.importorskip("hotcoco")

    def run(seen=True, **changes):
        common = {"image_id": 1, "category_id": CATEGORY_IDS[0], "iscrowd": 0, "area": 1200}
        corners = [(10, 10), (100, 100)]
        first, second = (
            {
                "id": i + 1,
                **common,
                "bbox": [x, y, 30, 40],
                "segmentation": [[x, y, x + 30, y, x + 30, y + 40, x, y + 40]],
            }
            for i, (x, y) in enumerate(corners)
        )
        detections = [perfect_detection(first, dataset, 0.5)]
        if seen:
            detections.append(perfect_detection(second, dataset, 0.9))
        second.update(changes)
        dataset["annotations"] = [first, {k: v for k, v in second.items() if v is not None}]
        outputs = synthetic_coco.to_outputs(detections, dataset)
        results = evaluate(dataset, outputs, tmp_path, backend=request.param)
        return results["bbox"]["AP"], results["segm"]["AP"]

    return run


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize(
    "changes",
    [{}, {"segmentation": None}, {"segmentation": [[5, 5, 5.1, 5, 5, 5.1]]}, {"iscrowd": 1}],
    ids=["mask", "no mask", "no pixel", "crowd"],
)
def test_ignored_annotations_count_neither_way(found_and, changes, seen):
    assert found_and(seen, ignore=1, **changes) == (pytest.approx(100), pytest.approx(100))


def test_boxes_without_area_do_not_count(found_and):
    """The second detection is wrong, and the only object is found."""
    changes = {"bbox": [100, 100, 0, 40], "segmentation": None}
    assert found_and(**changes) == (pytest.approx(50), pytest.approx(50))


def test_box_without_area_is_taken_from_the_mask(found_and):
    assert found_and(bbox=[100, 100, 0, 40]) == (pytest.approx(100), pytest.approx(100))


def test_polygons_without_a_pixel_are_no_mask(found_and, caplog):
    box_ap, mask_ap = found_and(segmentation=[[100.1, 100.1, 100.2, 100.1, 100.2, 100.2]])
    assert box_ap == pytest.approx(100) and np.isnan(mask_ap)
    assert "lack masks, and leaves them out: ant (1)" in caplog.text


def test_thin_objects_without_a_pixel_are_not_found(found_and):
    """As in COCO's own evaluation: the annotation counts in mask AP."""
    changes = {"segmentation": [[100.1, 100.1, 101.2, 100.1, 101.2, 100.2]]}
    _, mask_ap = found_and(bbox=[100.1, 100.1, 1.1, 0.1], **changes)
    assert 0 < mask_ap < 50  # one of two objects, after a wrong detection


def test_annotation_with_id_0_counts(dataset, tmp_path):
    """COCO evaluation itself takes a match with annotation 0 for no match."""
    first = dataset["annotations"][0]
    assert first["id"] == 0 and not first["iscrowd"]
    dataset["annotations"] = [first]
    detection = perfect_detection(first, dataset, 0.9)
    results = evaluate(dataset, synthetic_coco.to_outputs([detection], dataset), tmp_path)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)


def test_harmonic_mean(dataset, tmp_path):
    outputs = synthetic_coco.to_outputs(synthetic_coco.make_detections(dataset), dataset)
    results = evaluate(dataset, outputs, tmp_path)
    base, novel = results["segm-base"]["AP"], results["segm-novel"]["AP"]
    assert base > 0 and novel > 0 and base != novel
    assert results["segm-harmonic"] == {"AP": pytest.approx(2 / (1 / base + 1 / novel))}


def test_filled_boxes(dataset, tmp_path):
    detections = synthetic_coco.make_detections(dataset)
    outputs = synthetic_coco.to_outputs(detections, dataset)
    results = evaluate(dataset, outputs, tmp_path, eval_filled_boxes=True)
    without = evaluate(dataset, outputs, tmp_path)
    assert set(results) - set(without) == {"segm-filled-box" + suffix for suffix in GROUPS}
    for key in without:
        assert_same(results[key], without[key])

    # The boxes of synthetic detections lie on whole pixels, so that slices fill them exactly.
    for image, output in zip(dataset["images"], outputs):
        masks = torch.zeros(len(output["instances"]), image["height"], image["width"])
        for mask, box in zip(masks, output["instances"].pred_boxes.tensor.int().tolist()):
            mask[box[1] : box[3], box[0] : box[2]] = 1
        output["instances"].pred_masks = masks
    expected = evaluate(dataset, outputs, tmp_path)
    for suffix in GROUPS:
        assert_same(
            results["segm-filled-box" + suffix], {m: expected["segm" + suffix][m] for m in METRICS}
        )
    assert results["segm-filled-box"]["AP"] < results["segm"]["AP"]


def test_limit_of_detections(dataset, tmp_path):
    outputs = synthetic_coco.to_outputs(synthetic_coco.make_detections(dataset), dataset)
    one, many = (
        evaluate(dataset, outputs, tmp_path, max_dets_per_image=limit)["bbox"]["AP"]
        for limit in (1, None)
    )
    assert 0 < one < many


def test_no_detections(dataset, tmp_path):
    outputs = synthetic_coco.to_outputs([], dataset)
    results = evaluate(dataset, outputs, tmp_path, eval_filled_boxes=True)
    tasks = ["bbox", "segm", "segm-filled-box"]
    assert set(results) == {t + s for t in tasks for s in GROUPS} | {"segm-harmonic"}
    for key, metrics in results.items():
        assert_all_nan(metrics, ["AP"] if key == "segm-harmonic" else METRICS)
    assert "AP-ant" in results["bbox"]


def test_boxes_only(dataset, tmp_path):
    outputs = synthetic_coco.to_outputs(synthetic_coco.make_detections(dataset), dataset)
    for output in outputs:
        output["instances"].remove("pred_masks")
    assert list(evaluate(dataset, outputs, tmp_path)) == ["bbox", "bbox-base", "bbox-novel"]


def test_empty_group_and_classes_without_ground_truth(dataset, tmp_path):
    outputs = synthetic_coco.to_outputs(synthetic_coco.make_detections(dataset), dataset)
    no_ground_truth = synthetic_coco.CLASS_WITHOUT_GROUND_TRUTH
    split = ClassSplit(tuple(CLASS_NAMES), base=(no_ground_truth,), novel=())
    results = evaluate(dataset, outputs, tmp_path, split)
    for key in ("bbox-base", "bbox-novel", "segm-base", "segm-novel"):
        assert_all_nan(results[key])
    assert_all_nan(results["segm-harmonic"], ["AP"])
    assert results["segm"]["AP"] > 0
    assert np.isnan(results["segm"][f"AP-{CLASS_NAMES[no_ground_truth]}"])
    assert results["segm"][f"AP-{CLASS_NAMES[synthetic_coco.CLASS_WITHOUT_DETECTIONS]}"] == 0


@pytest.mark.parametrize("absent", ["no key", "no polygon", "two points", "empty RLE"])
def test_classes_with_missing_masks(dataset, tmp_path, caplog, absent):
    detections = synthetic_coco.make_detections(dataset)
    outputs = synthetic_coco.to_outputs(detections, dataset)
    complete = evaluate(dataset, outputs, tmp_path)
    image_size = {x["id"]: (x["height"], x["width"]) for x in dataset["images"]}
    # All masks of one base class are missing, and one mask of another.
    bare, partly = 2, 4
    of_class = {
        i: [x for x in dataset["annotations"] if x["category_id"] == CATEGORY_IDS[i]]
        for i in (bare, partly)
    }
    num_bare = sum(not x["iscrowd"] for x in of_class[bare])
    for annotation in of_class[bare] + of_class[partly][:1]:
        if absent == "no key":
            del annotation["segmentation"]
        else:
            height, width = image_size[annotation["image_id"]]
            annotation["segmentation"] = {
                "no polygon": [],
                "two points": [[1, 1, 9, 9]],
                "empty RLE": {"size": [height, width], "counts": [height * width]},
            }[absent]
    with caplog.at_level(logging.WARNING):
        results = evaluate(dataset, outputs, tmp_path)
    warnings = [
        x.getMessage() for x in caplog.records if "Mask AP cannot be measured" in x.getMessage()
    ]
    assert len(warnings) == 1
    for named in (f"{CLASS_NAMES[bare]} ({num_bare})", f"{CLASS_NAMES[partly]} (1)"):
        assert named in warnings[0]

    assert_same(results["bbox"], complete["bbox"])
    assert_same(results["segm-novel"], complete["segm-novel"])
    for index, name in enumerate(CLASS_NAMES):
        expected = float("nan") if index in (bare, partly) else complete["segm"][f"AP-{name}"]
        assert results["segm"][f"AP-{name}"] == pytest.approx(expected, nan_ok=True)
    assert results["segm-base"]["AP"] == pytest.approx(complete["segm"]["AP-ant"])


def test_polygons_of_two_points_do_not_matter(dataset, tmp_path):
    outputs = synthetic_coco.to_outputs(synthetic_coco.make_detections(dataset), dataset)
    expected = evaluate(dataset, outputs, tmp_path)
    for annotation in dataset["annotations"]:
        if not annotation["iscrowd"]:
            annotation["segmentation"].insert(0, [0, 0, 50, 50])
    results = evaluate(dataset, outputs, tmp_path)
    assert_same(results["segm"], expected["segm"])


def test_annotations_without_iscrowd_and_area(dataset, tmp_path):
    outputs = synthetic_coco.to_outputs(synthetic_coco.make_detections(dataset), dataset)
    expected = evaluate(dataset, outputs, tmp_path)
    for annotation in dataset["annotations"]:
        del annotation["area"]
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]
    results = evaluate(dataset, outputs, tmp_path)
    for key in expected:
        assert_same(results[key], expected[key])


def test_areas_that_the_file_does_not_say(dataset, tmp_path):
    """Of the mask, or else of the box; they decide what is small, medium and large."""
    of_image = [x for x in dataset["annotations"] if x["image_id"] == 1 and not x["iscrowd"]]
    dataset["annotations"] = of_image[:2]
    areas = [of_image[0]["area"], of_image[1]["bbox"][2] * of_image[1]["bbox"][3]]
    for x in of_image:
        del x["area"]
    del of_image[1]["segmentation"]
    synthetic_coco.register(dataset, NAME, tmp_path)
    annotations = read_ground_truth(NAME, CLASS_NAMES).annotations
    assert [x["area"] for x in annotations] == areas


def test_dataset_without_a_json_file(dataset, tmp_path):
    """A dataset that is not in COCO format is converted; files of earlier runs are not taken."""
    outputs = synthetic_coco.to_outputs(synthetic_coco.make_detections(dataset), dataset)
    expected = evaluate(dataset, outputs, tmp_path)
    name = "synthetic_not_coco"
    records = [
        {
            **image,
            "image_id": image["id"],
            "annotations": [
                {
                    **annotation,
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": CATEGORY_IDS.index(annotation["category_id"]),
                }
                for annotation in dataset["annotations"]
                if annotation["image_id"] == image["id"]
            ],
        }
        for image in dataset["images"]
    ]
    (tmp_path / f"{name}_coco_format.json").write_text("not the dataset")
    DatasetCatalog.register(name, lambda: copy.deepcopy(records))
    MetadataCatalog.get(name).thing_classes = CLASS_NAMES
    try:
        evaluator = ContrastMaskEvaluator(name, SPLIT, distributed=False, output_dir=str(tmp_path))
        evaluator.reset()
        evaluator.process([{"image_id": x["id"]} for x in dataset["images"]], outputs)
        results = evaluator.evaluate()
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    # The conversion rounds boxes and computes areas anew.
    for task in ("bbox-novel", "segm-base"):
        assert results[task]["AP"] == pytest.approx(expected[task]["AP"], abs=0.5)
    saved = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert len(saved) == sum(len(x["instances"]) for x in outputs)


def test_saved_predictions_have_ids_of_the_dataset(dataset, tmp_path):
    detections = synthetic_coco.make_detections(dataset)
    evaluate(
        dataset, synthetic_coco.to_outputs(detections, dataset), tmp_path, output_dir=str(tmp_path)
    )
    saved = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [x["category_id"] for x in saved] == [x["category_id"] for x in detections]
    assert [x["segmentation"] for x in saved] == [x["segmentation"] for x in detections]


def test_images_of_all_ranks_count(dataset, tmp_path, monkeypatch):
    outputs = synthetic_coco.to_outputs(synthetic_coco.make_detections(dataset), dataset)
    expected = evaluate(dataset, outputs, tmp_path)
    inputs = [{"image_id": x["id"]} for x in dataset["images"]]
    ranks = [ContrastMaskEvaluator(NAME, SPLIT) for _ in range(2)]
    for rank, evaluator in enumerate(ranks):
        evaluator.reset()
        evaluator.process(inputs[rank::2], outputs[rank::2])

    comm = "detectron2.utils.comm."
    gathered = [x._predictions for x in ranks]
    monkeypatch.setattr(comm + "gather", lambda data, dst: gathered if data is gathered[0] else [])
    assert_same(ranks[0].evaluate()["segm-novel"], expected["segm-novel"])
    monkeypatch.setattr(comm + "is_main_process", lambda: False)
    assert ranks[1].evaluate() == {}


def test_some_images(dataset, tmp_path):
    detections = synthetic_coco.make_detections(dataset)
    outputs = synthetic_coco.to_outputs(detections, dataset)
    inputs = synthetic_coco.register(dataset, NAME, tmp_path)
    evaluator = ContrastMaskEvaluator(NAME, SPLIT, distributed=False)
    evaluator.reset()
    evaluator.process(inputs, outputs)
    dataset["images"] = dataset["images"][5:29:2]
    chosen = [x["id"] for x in dataset["images"]]
    results = evaluator.evaluate(img_ids=chosen)
    dataset["annotations"] = [x for x in dataset["annotations"] if x["image_id"] in chosen]
    expected = reference(
        dataset, [x for x in detections if x["image_id"] in chosen], "segm", SPLIT.base
    )
    assert_same(results["segm-base"], expected)


def test_without_annotations(dataset, tmp_path):
    outputs = synthetic_coco.to_outputs(synthetic_coco.make_detections(dataset), dataset)
    del dataset["annotations"]
    assert evaluate(dataset, outputs, tmp_path, output_dir=str(tmp_path)) == {}
    assert (tmp_path / "coco_instances_results.json").exists()


def test_results_suit_detectron2(dataset, tmp_path, caplog):
    outputs = synthetic_coco.to_outputs(synthetic_coco.make_detections(dataset), dataset)
    with caplog.at_level(logging.INFO):
        results = evaluate(dataset, outputs, tmp_path)
        print_csv_format(results)
    assert "copypaste: Task: segm-novel" in caplog.text
    with EventStorage() as storage:
        storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        assert storage.latest()["segm-novel/AP"][0] == results["segm-novel"]["AP"]


def test_bad_arguments(dataset, tmp_path):
    synthetic_coco.register(dataset, NAME, tmp_path)
    others = SimpleNamespace(class_names=("ox", "owl"), base=(0,), novel=(1,))
    with pytest.raises(ValueError, match="'synthetic_coco'.*none of the model's classes"):
        ContrastMaskEvaluator(NAME, others)
    with pytest.raises(ValueError, match="keypoints"):
        ContrastMaskEvaluator(NAME, SPLIT, tasks=("bbox", "keypoints"))
    with pytest.raises(ValueError, match="TEST.COCO_EVAL_BACKEND"):
        ContrastMaskEvaluator(NAME, SPLIT, backend="none")


def test_unsound_annotation_file(dataset, tmp_path):
    dataset["annotations"][3]["bbox"] = [1, 2, 3]
    synthetic_coco.register(dataset, NAME, tmp_path)
    with pytest.raises(ValueError, match=f"{NAME}.json: annotation 3 .*must be 4 numbers"):
        ContrastMaskEvaluator(NAME, SPLIT)


def test_a_class_that_the_dataset_lacks(dataset, tmp_path):
    """The first one of the model; the numbers of the others stay theirs."""
    outputs = synthetic_coco.to_outputs(synthetic_coco.make_detections(dataset), dataset)
    expected = evaluate(dataset, outputs, tmp_path)
    for output in outputs:
        output["instances"].pred_classes += 1
    base, novel = ([i + 1 for i in ids] for ids in (SPLIT.base, SPLIT.novel))
    split = ClassSplit(("yak", *CLASS_NAMES), base=tuple(base), novel=(0, *novel))
    results = evaluate(dataset, outputs, tmp_path, split)
    assert np.isnan(results["segm"].pop("AP-yak")) and np.isnan(results["bbox"].pop("AP-yak"))
    for key in expected:
        assert_same(results[key], expected[key])


def test_detection_of_an_unknown_class(dataset, tmp_path):
    outputs = synthetic_coco.to_outputs(synthetic_coco.make_detections(dataset), dataset)
    outputs[-1]["instances"].pred_classes[:] = 8
    assert len(outputs[-1]["instances"])
    with pytest.raises(ValueError, match="class 8,.*has 8 classes.*NUM_CLASSES"):
        evaluate(dataset, outputs, tmp_path)
