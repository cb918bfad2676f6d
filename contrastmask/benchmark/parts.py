"""All parts of the benchmark by name."""

from . import branch, cam, coco_evaluation, mapper, pixel_sets, self_similarity, whole_model

# Name: function (Settings -> rows of a table), title.
PARTS = {
    "pixel_sets": (pixel_sets.run, "Pixel sets and sampling"),
    "branch": (branch.run, "Contrastive branch, forward and backward"),
    "cam": (cam.run, "Class activation maps"),
    "self_similarity": (self_similarity.run, "Self-similarity, forward and backward"),
    "model": (whole_model.run, "Whole training step and inference"),
    "mapper": (mapper.run, "Dataset mapper"),
    "coco_eval": (coco_evaluation.run, "COCO evaluation"),
}
