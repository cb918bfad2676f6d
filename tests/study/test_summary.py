"""Numbers over the seeds, as tables and as a plot."""

import pytest
from PIL import Image

from contrastmask.study import format_study, plot_study, summarize_study


def result(variant, seed, novel_iou, novel_ap):
    numbers = {"AP": novel_ap, "AP50": 50.0}
    return {
        "variant": variant,
        "title": f"Title of {variant}",
        "seed": seed,
        "mask": {"novel": numbers, "base": {"AP": 30.0, "AP50": 60.0}, "all": numbers},
        "box": {"all": {"AP": 40.0}},
        "gt_box_mask": {
            "novel": {"IoU": novel_iou, "AP": 1.0, "AP50": 2.0},
            "base": {"IoU": 80.0, "AP": 3.0, "AP50": 4.0},
        },
        "training": {"seconds": 1234.5, "peak_memory_mib": 99},
    }


@pytest.fixture
def summary():
    return summarize_study(
        [
            result("a", 1, 60.0, 20.0),
            result("b", 1, 70.0, None),
            result("a", 2, 62.0, 21.0),
            result("b", 2, 71.0, 25.0),
        ]
    )


def test_mean_and_deviation(summary):
    assert [(x["variant"], x["seeds"]) for x in summary] == [("a", [1, 2]), ("b", [1, 2])]
    assert summary[0]["numbers"]["novel IoU"] == {
        "mean": 61.0,
        "std": pytest.approx(2**0.5),
        "values": [60.0, 62.0],
    }
    # What was not measured does not count.
    assert summary[1]["numbers"]["novel mask AP"] == {"mean": 25.0, "std": None, "values": [25.0]}


def test_tables(summary):
    text = format_study(summary)
    row = next(x for x in text.splitlines() if "Title of a" in x)
    cells = [x.strip() for x in row.split("|")][1:4]
    assert cells == ["Title of a", "2", "61.00 ± 1.41"]
    assert "1234 ± 0" in text
    assert text.count("### ") == 3


def test_one_seed():
    text = format_study(summarize_study([result("a", 1, None, 20.0)]))
    assert "| Title of a | 1       | -" in text
    assert "±" not in text


def test_plot(summary, tmp_path):
    path = tmp_path / "folder" / "plot.png"
    plot_study(summary, str(path))
    with Image.open(path) as image:
        assert image.width > 1000 and len(image.getcolors(10**6)) > 10


def test_plot_of_titles_with_dollar_signs(summary, tmp_path):
    summary[0]["title"] = r"x$\foo$"
    plot_study(summary, str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").exists()
