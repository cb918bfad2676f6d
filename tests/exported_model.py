"""Runs exported models, and compares them with the predictor that they were made from."""

import json
import warnings

import numpy as np
import pytest
import torch

from contrastmask.export import export_model
from contrastmask.predictor import detect, encode, masks_for_boxes

# Height and width: not square, and none that is padded to itself but the last.
SIZES = [(150, 97), (61, 203), (128, 160)]
NUM_BOXES = (0, 1, 100)


def load(folder):
    """Function: (model's name, inputs by name) -> outputs by name."""
    about = json.loads((folder / "model.json").read_text())
    runs = {}
    for name, model in about["models"].items():
        path = str(folder / model["file"])
        if about["format"] == "onnx":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            providers = ["CPUExecutionProvider"]
            session = onnxruntime.InferenceSession(path, options, providers=providers)
            runs[name] = lambda x, session=session: session.run(None, x)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                runs[name] = _run_torchscript(torch.jit.load(path))

    def run(name, **inputs):
        assert list(inputs) == [x["name"] for x in about["models"][name]["inputs"]]
        outputs = runs[name](inputs)
        values = about["models"][name]["outputs"]
        assert [str(x.dtype) for x in outputs] == [x["type"] for x in values]
        return dict(zip([x["name"] for x in values], outputs))

    return run


def _run_torchscript(module):
    def run(inputs):
        with torch.no_grad():
            return [x.numpy() for x in module(*map(torch.from_numpy, inputs.values()))]

    return run


def random_image(size, seed=0):
    """(3, h, w) uint8: smooth, with edges."""
    rng = np.random.default_rng(seed)
    height, width = size
    coarse = rng.integers(0, 256, (3, height // 16 + 1, width // 16 + 1), dtype=np.uint8)
    image = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    return image // 2 + rng.integers(0, 128, image.shape, dtype=np.uint8)


def check_onnx(predictor, folder):
    """Exports a model and compares it on images of three sizes."""
    for name in ("onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    export_model(predictor, str(folder), "onnx")
    run = load(folder)
    for seed, size in enumerate([(192, 139), (101, 192), (160, 192)]):
        image = random_image(size, seed)
        assert check_detector(predictor, run, image) > 10
        check_box_masks(predictor, run, image, NUM_BOXES[seed])


def check_detector(predictor, run, image):
    """Asserts that boxes, scores, classes, masks and CAMs are equal; returns their number."""
    (expected,), logits = _with_logits(predictor.model, lambda encoded: detect(*encoded), image)
    found = run("detector", image=image)
    assert {len(x) for x in found.values()} == {len(expected)}
    if not len(expected):
        return 0
    np.testing.assert_array_equal(found["classes"], expected.pred_classes)
    np.testing.assert_allclose(found["boxes"], expected.pred_boxes.tensor, atol=0.01, rtol=0)
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-4, rtol=0)
    np.testing.assert_allclose(found["mask_logits"], logits, atol=0.01, rtol=0)
    np.testing.assert_allclose(found["cams"], expected.pred_cams, atol=0.01, rtol=1e-4)
    return len(expected)


def check_box_masks(predictor, run, image, number):
    """Asserts that the masks of some random boxes are equal."""
    rng = np.random.default_rng(number)
    low = rng.uniform(0, 0.6, (number, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.01, 0.4, low.shape)], axis=1)
    boxes = (boxes * np.tile(image.shape[:0:-1], 2)).astype(np.float32)
    classes = rng.integers(0, len(predictor.class_names), number)
    found = run("box_masks", image=image, boxes=boxes, classes=classes)
    _, logits = _with_logits(
        predictor.model, lambda encoded: masks_for_boxes(*encoded, [boxes], [classes]), image
    )
    assert len(found["mask_logits"]) == len(found["cams"]) == number
    if number:
        np.testing.assert_allclose(found["mask_logits"], logits, atol=0.01, rtol=0)


def _with_logits(model, function, image):
    """The result of a function for an encoded image, and the mask logits that it had."""
    heads, logits = model.roi_heads, []
    last = heads.color_crf if heads.color_crf is not None else heads.mask_head
    hook = last.register_forward_hook(lambda *args: logits.append(args[-1]))
    try:
        result = function((model, encode(model, [{"image": torch.from_numpy(image)}])))
    finally:
        hook.remove()
    return result, torch.cat(logits).flatten(0, -3).numpy() if logits else None
