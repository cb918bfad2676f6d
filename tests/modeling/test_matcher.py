import pytest
import torch
from detectron2.modeling.matcher import Matcher

from contrastmask.modeling.matcher import ReassigningMatcher


def reference_match(iou, positive, negative, min_iou):
    """The rule written with loops: thresholds first, then the ground truths in turn."""
    matches, labels = [], []
    for n in range(iou.shape[1]):
        best = iou[:, n].max().item()
        matches.append(iou[:, n].tolist().index(best))
        labels.append(1 if best >= positive else 0 if best < negative else -1)
    for m in range(iou.shape[0]):
        best = iou[m].max().item()
        for n in range(iou.shape[1]):
            if best >= min_iou and best > 0 and iou[m, n] == best:
                matches[n], labels[n] = m, 1
    return matches, labels


@pytest.mark.parametrize("min_iou", [0.0, 0.35, 0.75])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_rule_in_loops(min_iou, seed):
    rng = torch.Generator().manual_seed(seed)
    # Rounded, so that there are ties.
    iou = (torch.rand(5, 12, generator=rng) * 10).round() / 10
    iou[2] = 0
    matcher = ReassigningMatcher([0.25, 0.65], [0, -1, 1], min_iou=min_iou)
    matches, labels = matcher(iou)
    expected = reference_match(iou, 0.65, 0.25, min_iou)
    assert matches.tolist() == expected[0]
    assert labels.tolist() == expected[1] and labels.dtype == torch.int8


def test_box_goes_to_the_ground_truth_that_needs_it():
    # Box 0 overlaps ground truth 0 more, but is the best one ground truth 1 has.
    iou = torch.tensor([[0.8, 0.9, 0.0], [0.6, 0.1, 0.0]])
    plain, _ = Matcher([0.5], [0, 1])(iou)
    assert plain.tolist() == [0, 0, 0]
    matches, labels = ReassigningMatcher([0.5], [0, 1], min_iou=0.5)(iou)
    assert matches.tolist() == [1, 0, 0] and labels.tolist() == [1, 1, 0]
    matches, _ = ReassigningMatcher([0.5], [0, 1], min_iou=0.7)(iou)
    assert matches.tolist() == [0, 0, 0]


def test_ground_truth_boxes_belong_to_themselves():
    # Two identical ground truths; the last two columns are their own boxes.
    iou = torch.tensor([[0.8, 0.2, 1.0, 1.0], [0.8, 0.2, 1.0, 1.0]])
    matcher = ReassigningMatcher([0.5], [0, 1], min_iou=0.5, last_are_gt=True)
    matches, labels = matcher(iou)
    assert matches.tolist() == [1, 0, 0, 1] and labels.tolist() == [1, 0, 1, 1]
    matches, labels = matcher(iou[:, 2:])  # no other boxes
    assert matches.tolist() == [0, 1] and labels.tolist() == [1, 1]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_match(shape):
    matcher = ReassigningMatcher([0.5], [0, 1], min_iou=0.0)
    matches, labels = matcher(torch.zeros(shape))
    assert matches.shape == labels.shape == (shape[1],) and not labels.any()
