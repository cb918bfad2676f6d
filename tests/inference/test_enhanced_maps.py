import pytest
import small_model
import torch

from contrastmask.inference import predict
from contrastmask.inference.enhanced_maps import adding_enhanced_maps, principal_maps


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("enhanced")
    small_model.write_data(folder, num_images=2)
    cfg, model = small_model.write_weights(
        folder / "model.pth", small_model.options(folder, "enhanced_maps")
    )
    return cfg, model, {"file_name": str(folder / "train" / "000001.jpg")}


def test_principal_maps():
    direction = torch.randn(1, 6, 1, 1)
    pattern = torch.randn(2, 1, 4, 4)
    features = 3 * direction * pattern + 0.01 * torch.randn(2, 6, 4, 4) + 5
    maps = principal_maps(features).flatten(1)
    expected = (pattern - pattern.mean(dim=(2, 3), keepdim=True)).flatten(1)
    similarity = torch.nn.functional.cosine_similarity(maps, expected)
    assert similarity.abs().min() > 0.999


def test_maps_belong_to_the_detections(setting):
    cfg, model, record = setting
    plain = predict(cfg, model, record)
    model.roi_heads.test_rois_per_chunk = 2  # the heads run several times
    with adding_enhanced_maps(model):
        twice = [predict(cfg, model, record) for _ in range(2)]
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
    assert not predict(cfg, model, record).has("enhanced_maps")
