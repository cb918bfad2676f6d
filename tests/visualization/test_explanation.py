import numpy as np
import pytest
import torch

from contrastmask.visualization.explanation import draw_explanation
from contrastmask.visualization.figure import save_png


@pytest.mark.parametrize("with_features", [True, False])
def test_panels(image, instances, split, with_features):
    if with_features:
        instances.enhanced_maps = torch.rand(2, 14, 14)
    figure = draw_explanation(image, instances, split)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    expected = ["image", "CAM", "enhanced features", "mask"]
    assert titles == [x for x in expected if with_features or x != "enhanced features"]
    labels = [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]
    assert labels == ["ant (base)\n90%", "bee (novel)\n60%"]
    panels = [ax.images[0].get_array() for ax in figure.axes[: len(titles)]]
    for other in panels[1:]:
        assert (other != panels[0]).any()
    inner = panels[0][40:-40, 40:-40]
    assert (inner == 100).all() and inner.size
    assert np.ptp(panels[1].reshape(-1, 3), axis=0).min() > 50  # a heat map


def test_each_row_is_of_one_detection(image, instances, split):
    both, second = (draw_explanation(image, x, split) for x in (instances, instances[1:]))
    rows = [
        [ax.images[0].get_array() for ax in figure.axes if ax.images] for figure in (both, second)
    ]
    number = len(rows[1])
    assert len(rows[0]) == 2 * number
    for panel, expected in zip(rows[0][number:], rows[1]):
        assert np.array_equal(panel, expected)


def test_names_with_dollar_signs(image, instances, split_of_dollars, tmp_path):
    save_png(draw_explanation(image, instances, split_of_dollars), str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").exists()
