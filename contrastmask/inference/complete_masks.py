"""From an annotation file with boxes to the same file with masks."""

import hashlib
import logging
import os
from dataclasses import dataclass, field
from typing import Dict, List, Sequence, Tuple

from detectron2.structures import BoxMode
from tqdm import tqdm

from ..atomic_files import write_whole
from ..data.coco_format import AnnotationFile
from .box_masks import predict_box_masks
from .journal import Journal
from .json_splice import splice_annotations

__all__ = ["SCORE_KEY", "MaskCompletion", "complete_masks"]

logger = logging.getLogger(__name__)

# Key of an annotation for the score of its predicted mask.
SCORE_KEY = "mask_score"
_JOURNAL_SUFFIX = ".journal"
_NUM_EXAMPLES = 10


@dataclass
class MaskCompletion:
    """What became of the annotations of a file.

    Attributes:
        masks: annotation id -> predicted RLE.
        num_kept: annotations that had a mask already.
        num_left_out: crowds, annotations marked "ignore", boxes without area in the image.
        empty: ids of the annotations for which the model predicted no pixel.
        unreadable: file names of images and why they were skipped.
    """

    masks: Dict[object, dict] = field(default_factory=dict)
    num_kept: int = 0
    num_left_out: int = 0
    empty: list = field(default_factory=list)
    unreadable: List[Tuple[str, str]] = field(default_factory=list)


def complete_masks(
    cfg,
    model,
    json_file: str,
    image_root: str,
    output: str,
    class_names: Sequence[str],
    *,
    batch_size: int = 4,
    num_workers: int = 0,
    replace: bool = False,
) -> MaskCompletion:
    """Give every box-only annotation of a COCO-format file the mask predicted for its box.

    These annotations get a "segmentation" (compressed RLE) and a "mask_score" (mean probability
    inside the mask). All other text of the file is copied unchanged, "area" included. Finished
    images are kept in `output` + ".journal", from which an interrupted run goes on; the journal is
    removed when all images are done.

    Args:
        cfg (CfgNode): the model's.
        model (GeneralizedRCNN): in evaluation mode.
        json_file: annotation file.
        image_root: folder of its images.
        output: file to write.
        class_names: the model's classes by contiguous id. Categories are matched by name.
        batch_size: images at a time.
        num_workers: processes that read images.
        replace: also predict masks for the annotations that have one.

    Returns:
        MaskCompletion:

    Raises:
        AnnotationFileError: if the file is not sound.
        JournalError: if there is a journal of another run.
        ValueError: for a category that the model does not know, a model without masks, a missing
            image folder, or an output that is the input.
    """
    if not cfg.MODEL.MASK_ON:
        raise ValueError("MODEL.MASK_ON is False: this model predicts no masks")
    if os.path.exists(output) and os.path.samefile(json_file, output):
        raise ValueError(f"The output file is the annotation file itself: {output}")
    if not os.path.isdir(image_root):
        raise ValueError(f"The image folder '{image_root}' does not exist")
    file = AnnotationFile(json_file)
    with open(json_file, "rb") as f:
        content = f.read()
    completion = MaskCompletion()
    records = _records(file, image_root, class_names, replace, completion)

    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    belongs_to = {
        "annotation file": hashlib.sha256(content).hexdigest(),
        "model": _model_hash(model),
        "configuration": _config_hash(cfg),
        "choice of annotations": "all" if replace else "box-only",
    }
    journal = Journal(output + _JOURNAL_SUFFIX, belongs_to)
    try:
        _predict(cfg, model, records, journal, completion, batch_size, num_workers)
    finally:
        journal.close()

    _write_output(content, file, journal.results, completion, output)
    if completion.unreadable:
        logger.warning(
            f"{len(completion.unreadable)} images were skipped. To do them later, make them "
            f"readable and run the same command again: {journal.path} keeps the other images."
        )
    else:
        journal.remove()
    return completion


def _records(file, image_root, class_names, replace, completion) -> List[dict]:
    """Images with the annotations to predict masks for, in classes of the model."""
    id_map = file.category_id_map()
    names = file.class_names()
    images = file.images_by_id()
    instances, _ = file.instances_by_image(images, id_map)
    records, num_seen = [], 0
    for image_id, image in images.items():
        chosen = []
        for x in instances[image_id]:
            if x["iscrowd"]:
                continue
            num_seen += 1
            if "segmentation" in x and not replace:
                completion.num_kept += 1
            else:
                chosen.append(
                    {
                        "id": x["id"],
                        "bbox": x["bbox"],
                        "bbox_mode": BoxMode.XYWH_ABS,
                        "category_id": names[x["category_id"]],
                    }
                )
        if chosen:
            records.append(
                {
                    "image_id": image_id,
                    "file_name": os.path.join(image_root, image["file_name"]),
                    "height": image["height"],
                    "width": image["width"],
                    "annotations": chosen,
                }
            )
    completion.num_left_out = len(file.content["annotations"]) - num_seen
    _names_to_model_classes(file, records, class_names)
    return records


def _names_to_model_classes(file, records, class_names) -> None:
    index = {name: i for i, name in enumerate(class_names)}
    annotations = [x for record in records for x in record["annotations"]]
    unknown = sorted({x["category_id"] for x in annotations} - set(index))
    if unknown:
        shown = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
        raise file.error(
            f"the model does not know the categories {', '.join(unknown)}; its classes are {shown}"
        )
    for x in annotations:
        x["category_id"] = index[x["category_id"]]


def _predict(cfg, model, records, journal, completion, batch_size, num_workers) -> None:
    left = [record for record in records if record["image_id"] not in journal.results]
    if len(left) < len(records):
        logger.info(f"{len(records) - len(left)} images are in {journal.path} already")
    progress = tqdm(total=len(records), initial=len(records) - len(left), unit="image")
    predictions = predict_box_masks(
        cfg, model, left, batch_size=batch_size, num_workers=num_workers
    )
    finished = {}
    with progress:
        for number, (record, masks, problem) in enumerate(predictions, 1):
            if masks is None:
                completion.unreadable.append((record["file_name"], problem))
                logger.warning(f"Skipped {record['file_name']}: {problem}")
            else:
                finished[record["image_id"]] = [
                    {"id": x["id"], "segmentation": mask.segmentation, SCORE_KEY: mask.score}
                    for x, mask in zip(record["annotations"], masks)
                ]
            if number % batch_size == 0 or number == len(left):
                journal.add(finished)
                finished = {}
            progress.update()


def _write_output(content, file, results, completion, output) -> None:
    indices = {x["id"]: index for index, x in enumerate(file.content["annotations"])}
    changes = {}
    for masks in results.values():
        for mask in masks:
            if mask["segmentation"] is None:
                completion.empty.append(mask["id"])
                continue
            completion.masks[mask["id"]] = mask["segmentation"]
            changes[indices[mask["id"]]] = {k: mask[k] for k in ("segmentation", SCORE_KEY)}
    if completion.empty:
        shown = ", ".join(str(i) for i in completion.empty[:_NUM_EXAMPLES])
        logger.warning(
            f"No pixel was predicted for {len(completion.empty)} annotations, which stay as they "
            f"are: {shown}{', ...' if len(completion.empty) > _NUM_EXAMPLES else ''}"
        )
    byte_order_mark = b"\xef\xbb\xbf"
    mark = byte_order_mark if content.startswith(byte_order_mark) else b""
    text = splice_annotations(content[len(mark) :].decode("utf-8"), changes)
    with write_whole(output, "wb") as f:
        f.write(mark + text.encode("utf-8"))


def _model_hash(model) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _config_hash(cfg) -> str:
    """Of what the masks depend on: neither the device nor where the weights come from."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = cfg.MODEL.WEIGHTS = ""
    return hashlib.sha256((cfg.MODEL.dump() + cfg.INPUT.dump()).encode()).hexdigest()
