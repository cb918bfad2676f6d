"""Batches are those of Detectron2's loader, and can begin anywhere, with any number of workers."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm

from contrastmask.data import TrainingLoader

SIZES = [(40, 30), (30, 40), (20, 20)]
DATA = [
    {"file_name": f"{i}.png", "width": SIZES[i % 3][0], "height": SIZES[i % 3][1]}
    for i in range(11)
]


def example(dataset_dict):
    """What a mapper draws: augmentation, from all three generators."""
    return {
        **dataset_dict,
        "random": (np.random.rand(), random.random(), float(torch.rand(()))),
    }


def make_sampler(kind, seed=5):
    if kind == "repeat factor":
        factors = torch.linspace(0.6, 3.1, len(DATA))
        return RepeatFactorTrainingSampler(factors, seed=seed)
    return TrainingSampler(len(DATA), seed=seed)


def make_loader(kind="uniform", begin=0, seed=5, **kwargs):
    loader = TrainingLoader(DATA, example, make_sampler(kind), total_batch_size=4, **kwargs)
    loader.begin_at(begin, seed)
    return loader


def take(loader, number):
    return list(itertools.islice(loader, number))


def files(batches):
    return [[d["file_name"] for d in batch] for batch in batches]


@pytest.mark.parametrize("kind", ["uniform", "repeat factor"])
@pytest.mark.parametrize("grouping", [True, False])
def test_same_images_as_detectron2(kind, grouping):
    theirs = build_detection_train_loader(
        DATA,
        mapper=example,
        sampler=make_sampler(kind),
        total_batch_size=4,
        aspect_ratio_grouping=grouping,
    )
    ours = make_loader(kind, aspect_ratio_grouping=grouping)
    assert files(take(ours, 20)) == files(take(theirs, 20))


@pytest.mark.parametrize("kind", ["uniform", "repeat factor"])
@pytest.mark.parametrize("begin", [1, 7])
def test_begins_anywhere(kind, begin):
    whole = take(make_loader(kind), 15)
    assert take(make_loader(kind, begin=begin), 15 - begin) == whole[begin:]
    assert len({d["random"] for batch in whole for d in batch}) == 15 * 4


def test_workers_change_nothing():
    expected = take(make_loader(), 9)
    assert take(make_loader(num_workers=2), 9) == expected
    assert take(make_loader(num_workers=3, begin=4), 5) == expected[4:]


def test_another_seed_is_another_stream():
    one, two = (take(make_loader(seed=seed), 10) for seed in (5, 6))
    assert files(one) != files(two)


def test_loading_leaves_random_numbers_of_the_process_alone():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = float(torch.rand(())), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    take(make_loader(), 2)
    assert (float(torch.rand(())), np.random.rand(), random.random()) == expected


def test_processes_share_the_stream(monkeypatch):
    """Two processes see together what one sees, with the same augmentation."""
    one = take(make_loader(aspect_ratio_grouping=False), 6)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    two = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        two.append(take(make_loader(aspect_ratio_grouping=False), 6))
    for batch, first, second in zip(one, *two):
        assert batch[0::2] == first and batch[1::2] == second
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 4, which 3 processes"):
        make_loader()


def test_images_of_unknown_size_are_reported(caplog):
    data = [{"file_name": "a.png"}, *DATA]
    TrainingLoader(data, example, TrainingSampler(len(data), seed=1), total_batch_size=1)
    assert "1 of 12 training images have no 'width' or 'height'" in caplog.text
