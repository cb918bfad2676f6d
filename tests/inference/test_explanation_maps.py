import pytest
import small_model
import torch

from contrastmask import Predictor
from contrastmask.inference.explanation_maps import adding_enhanced_maps, principal_maps


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Predictor, and an image that is not square."""
    folder = tmp_path_factory.mktemp("explanation")
    small_model.write_odd_data(folder, num_images=2)
    path = small_model.write_checkpoint(folder, small_model.options(folder, "explanation"))
    return Predictor(path), str(folder / "train" / "1.png")


def test_principal_maps():
    direction = torch.randn(1, 6, 1, 1)
    pattern = torch.randn(2, 1, 4, 4)
    features = 3 * direction * pattern + 0.01 * torch.randn(2, 6, 4, 4) + 5
    maps = principal_maps(features).flatten(1)
    expected = (pattern - pattern.mean(dim=(2, 3), keepdim=True)).flatten(1)
    similarity = torch.nn.functional.cosine_similarity(maps, expected)
    assert similarity.abs().min() > 0.999


def test_maps_belong_to_the_detections(setting):
    predictor, image = setting
    model = predictor.model
    plain = predictor(image)
    model.roi_heads.test_rois_per_chunk = 2  # the heads run several times
    with adding_enhanced_maps(model):
        twice = predictor([image, image])
    for instances in twice:
        assert len(instances) == len(plain) > 2
        assert instances.enhanced_maps.shape == (len(plain), 14, 14)
        assert torch.equal(instances.pred_boxes.tensor, plain.pred_boxes.tensor)
        small = torch.nn.functional.interpolate(
            instances.pred_cams[:, None], size=(14, 14), mode="bilinear", align_corners=False
        )[:, 0]
        centered = small - small.mean(dim=(1, 2), keepdim=True)
        assert ((instances.enhanced_maps * centered).sum(dim=(1, 2)) >= -1e-4).all()
    assert torch.equal(twice[0].enhanced_maps, twice[1].enhanced_maps)
    assert not predictor(image).has("enhanced_maps")
