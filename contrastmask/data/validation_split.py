"""Splitting images off a COCO-format file for validation."""

from collections import Counter
from typing import Dict, List, Sequence, Set, Tuple

import numpy as np

from ..atomic_files import write_json
from .annotation_values import Ids, to_id

__all__ = ["choose_validation_images", "write_split"]


def choose_validation_images(
    records: Sequence[dict], fraction: float, seed: int = 0
) -> Set[object]:
    """
    Choose images so that every class is in both parts where that is possible, and the classes with
    the fewest images get their share first.

    Args:
        records: images in Detectron2's dataset format.
        fraction: of the images of each class that is wanted for validation, in (0, 1).
        seed: of the order in which images are taken.

    Returns:
        Ids of the images for validation; those without annotations stay in training.
    """
    order = np.random.default_rng(seed).permutation(len(records))
    classes_of: Dict[object, Set[int]] = {
        records[i]["image_id"]: {
            x["category_id"] for x in records[i]["annotations"] if not x.get("iscrowd", 0)
        }
        for i in order
    }
    total = Counter(c for classes in classes_of.values() for c in classes)
    wanted = {c: max(round(fraction * n), 1) if n > 1 else 0 for c, n in total.items()}
    chosen: Set[object] = set()
    taken: Counter = Counter()
    for c in sorted(wanted, key=lambda c: (total[c], c)):
        for image_id, classes in classes_of.items():
            if taken[c] >= wanted[c]:
                break
            # An image is left in training if a class would be gone from there without it.
            if c in classes and image_id not in chosen:
                if all(total[k] - taken[k] > 1 for k in classes):
                    chosen.add(image_id)
                    taken.update(classes)
    return chosen


def write_split(content: dict, validation: Set[object], train_path: str, val_path: str) -> None:
    """
    Write an annotation file as two. Entries stay as they are in the file.

    Args:
        content: of the file, from :func:`.coco_format.load_json`.
        validation: ids of the images for `val_path`, as :func:`choose_validation_images` gives.
        train_path, val_path: files to write.
    """
    known = Ids()
    for image in content["images"]:
        known.add(to_id(image.get("id")), int(to_id(image.get("id")) in validation))
    parts: Tuple[List[dict], List[dict]] = [], []
    for annotation in content["annotations"]:
        part = known.find(annotation.get("image_id"))
        parts[part or 0].append(annotation)
    for part, path in enumerate((train_path, val_path)):
        images = [x for x in content["images"] if (to_id(x.get("id")) in validation) == bool(part)]
        write_json(path, {**content, "images": images, "annotations": parts[part]})
