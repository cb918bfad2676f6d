import pytest
import small_model
import torch

from contrastmask.engine import load_config
from contrastmask.inference import load_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Options of a small model, the path of its weights, and these."""
    folder = tmp_path_factory.mktemp("load_model")
    opts = small_model.options(folder, "load_model")
    _, model = small_model.write_weights(folder / "model.pth", opts)
    return opts, str(folder / "model.pth"), model.state_dict()


def config(opts, *more):
    return load_config(small_model.CONFIG_FILE, [*opts, *more])


def test_everything_is_loaded(trained):
    """Also what the training began without."""
    opts, path, expected = trained
    cfg = config(opts, "MODEL.WEIGHTS_EXCLUDE", "['roi_heads.box_predictor', 'backbone']")
    model = load_model(cfg, path)
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_weights_of_the_config(trained):
    opts, path, expected = trained
    name = "roi_heads.box_predictor.cls_score.weight"
    model = load_model(config(opts, "MODEL.WEIGHTS", path))
    assert torch.equal(model.state_dict()[name], expected[name])
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty.*give the checkpoint"):
        load_model(config(opts))


@pytest.mark.parametrize("value", [False, True])
def test_channels_last(trained, value):
    opts, path, _ = trained
    model = load_model(config(opts, "MODEL.CHANNELS_LAST", str(value)), path)
    weight = model.roi_heads.contrastive_head.encoder[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == value
