"""Numbers and images of a training step."""

import torch
from detectron2.utils.events import EventStorage

from contrastmask.modeling.monitoring import put_scalars, put_training_images
from contrastmask.modeling.pixel_sets import KeySets


def test_scalars_from_tensors_and_numbers():
    with EventStorage(3) as storage:
        put_scalars({"a": 2, "b": torch.tensor(5), "c": 0.25, "d": torch.tensor(0.5)})
        put_scalars({"e": 7})
    values = {k: v for k, (v, _) in storage.latest().items()}
    assert values == {"a": 2, "b": 5, "c": 0.25, "d": 0.5, "e": 7}
    assert not any(isinstance(x, torch.Tensor) for x in values.values())


def test_rows_of_rois():
    """Each RoI beside the others, at most `max_rois`; keys in the colors of their sets."""
    cam = torch.linspace(0, 1, 3)[:, None, None, None].expand(3, 1, 14, 14)
    keys = [torch.zeros(3, 28, 28, dtype=torch.bool) for _ in range(4)]
    for k, pixels in enumerate(keys):
        pixels[1, 7 * k : 7 * k + 7] = True  # four bands
    logits = torch.full((1, 1, 28, 28), -1.0)
    with EventStorage(3) as storage:
        put_training_images(cam=cam, sampled=KeySets(*keys), mask_logits=logits, max_rois=2)
    images = {name: torch.as_tensor(image) for name, image, _ in storage._vis_data}
    cams, keys, masks = (
        images[f"contrastmask/{x}"] for x in ("cam", "sampled_keys", "predicted_masks")
    )
    assert cams.shape == keys.shape == (3, 112, 224) and masks.shape == (3, 112, 112)
    assert (cams[:, :, :112] == 0).all() and (cams[:, :, 112:] == 0.5).all()
    assert (keys[:, :, :112] == 0).all()
    bands = keys[:, 14::28, 170].T  # easy positive and negative, hard positive and negative
    brightest = bands.argmax(dim=1).tolist()
    assert brightest == [1, 2, 1, 0] and bands[2, 0] > bands[0, 0]
    assert torch.allclose(masks, torch.tensor(-1.0).sigmoid())


def test_scalars_of_a_training_step(heads_cfg, build_heads, run_heads):
    _, storage = run_heads(build_heads(heads_cfg), iteration=25)
    scalars = {k: v for k, (v, _) in storage.latest().items()}
    assert scalars["contrastive/ramp"] == 0.5
    assert 0 < scalars["contrastive/num_kept"] <= scalars["contrastive/num_rois"]
    for name in ("easy_positive", "easy_negative", "hard_positive", "hard_negative"):
        assert scalars[f"contrastive/num_{name}"] > 0
    for name in ("foreground_easy", "foreground_hard", "background_easy", "background_hard"):
        assert scalars[f"contrastive/{name}"] > 0
    for name in ("accuracy", "false_positive", "false_negative"):
        assert 0 <= scalars[f"mask_head/{name}"] <= 1


def test_training_images(heads_cfg, build_heads, make_batch, run_heads):
    heads_cfg.VIS_PERIOD = 2
    heads = build_heads(heads_cfg)
    for iteration, expected in ((1, 0), (2, 3), (3, 0), (4, 3)):
        _, storage = run_heads(heads, iteration=iteration)
        assert len(storage._vis_data) == expected
    images = {name: torch.as_tensor(image) for name, image, _ in storage._vis_data}
    assert list(images) == [
        "contrastmask/cam",
        "contrastmask/sampled_keys",
        "contrastmask/predicted_masks",
    ]
    assert images["contrastmask/cam"].min() < 0.05 and images["contrastmask/cam"].max() > 0.95
    _, storage = run_heads(heads, make_batch(num_boxes=(0,)), iteration=2)
    assert not storage._vis_data


def test_images_are_off_by_default(heads_cfg, build_heads, run_heads):
    assert not run_heads(build_heads(heads_cfg))[1]._vis_data
