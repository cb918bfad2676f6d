"""Masks of novel classes do not reach the model: a whole training step, from file to gradients."""

import json
import shutil

import small_model
import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from contrastmask.data.shapes import SHAPE_NOVEL_CLASSES
from contrastmask.engine import Trainer, load_config


def change_masks(path, novel):
    """Replace every mask of a novel (or base) class in a COCO file by a triangle in the box."""
    content = json.loads(path.read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    changed = 0
    for annotation in content["annotations"]:
        if (names[annotation["category_id"]] in SHAPE_NOVEL_CLASSES) == novel:
            x, y, w, h = annotation["bbox"]
            annotation["segmentation"] = [[x, y, x + w, y, x, y + h]]
            changed += 1
    path.write_text(json.dumps(content))
    return changed


def training_step(folder, name):
    opts = [*small_model.options(folder, name), "DATASETS.BASE_CLASSES", "['shapes_base']"]
    opts += ["SOLVER.IMS_PER_BATCH", "4", "SEED", "1", "INPUT.MIN_SIZE_TRAIN", "(64,)"]
    cfg = load_config(small_model.CONFIG_FILE, opts)
    seed_all_rng(1)
    model = build_model(cfg).train()
    seed_all_rng(2)
    batch = next(iter(Trainer.build_train_loader(cfg)))
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return batch, losses, gradients


def test_changing_every_novel_mask_changes_nothing(tmp_path):
    steps = {}
    for name in ("original", "novel changed", "base changed"):
        folder = tmp_path / name.replace(" ", "_")
        small_model.write_data(folder)
        annotations = folder / "annotations" / "train.json"
        shutil.copy(folder / "annotations" / "train_full.json", annotations)  # masks of all classes
        if name != "original":
            assert change_masks(annotations, novel=name == "novel changed") > 5
        steps[name] = training_step(folder, f"leak: {name}")

    batch, losses, gradients = steps["original"]
    has_mask = torch.cat([x["instances"].gt_has_mask for x in batch])
    assert has_mask.any() and not has_mask.all()
    _, novel_losses, novel_gradients = steps["novel changed"]
    assert all(torch.equal(losses[k], novel_losses[k]) for k in losses)
    assert set(gradients) == set(novel_gradients)
    assert all(torch.equal(gradients[k], novel_gradients[k]) for k in gradients)
    # The comparison can fail: base masks do matter.
    assert not torch.equal(losses["loss_mask"], steps["base changed"][1]["loss_mask"])
