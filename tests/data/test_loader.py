"""Batches are those of Detectron2's loader, and can begin anywhere, with any number of workers."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm

from contrastmask.config import default_config
from contrastmask.data import TrainingLoader

SIZES = [(40, 30), (30, 40), (20, 20)]
DATA = [
    {"file_name": f"{i}.png", "width": SIZES[i % 3][0], "height": SIZES[i % 3][1]}
    for i in range(11)
]


def numbers():
    """One number of each generator."""
    return random.random(), np.random.rand(), float(torch.rand(()))


def example(dataset_dict):
    return {**dataset_dict, "random": numbers()}


def make_sampler(kind, seed=5):
    if kind == "repeat factor":
        factors = torch.linspace(0.6, 3.1, len(DATA))
        return RepeatFactorTrainingSampler(factors, seed=seed)
    return TrainingSampler(len(DATA), seed=seed)


def make_loader(kind="uniform", begin=0, seed=5, **kwargs):
    sampler = make_sampler(kind)
    loader = TrainingLoader(DATA, mapper=example, sampler=sampler, total_batch_size=4, **kwargs)
    loader.begin_at(begin, seed)
    return loader


def take(loader, number):
    """Batches, each with the numbers that a training step would draw."""
    return [(batch, numbers()) for batch in itertools.islice(loader, number)]


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
    assert files(itertools.islice(ours, 20)) == files(itertools.islice(theirs, 20))


@pytest.mark.parametrize("kind", ["uniform", "repeat factor"])
@pytest.mark.parametrize("begin", [1, 7])
def test_begins_anywhere(kind, begin):
    whole = take(make_loader(kind), 15)
    assert take(make_loader(kind, begin=begin), 15 - begin) == whole[begin:]
    drawn = [d["random"] for batch, _ in whole for d in batch] + [step for _, step in whole]
    for generator in zip(*drawn):
        assert len(set(generator)) == 15 * 5, "two examples or steps have the same numbers"


def test_skipped_images_are_not_read():
    read = []

    def mapper(dataset_dict):
        read.append(dataset_dict["file_name"])
        return dataset_dict

    sampler = make_sampler("uniform")
    loader = TrainingLoader(DATA, mapper=mapper, sampler=sampler, total_batch_size=3, seed=5)
    expected = files(itertools.islice(loader, 9))[8]
    read.clear()
    loader.begin_at(8, 5)
    next(iter(loader))
    assert read == expected


def test_workers_change_nothing():
    expected = take(make_loader(), 9)
    assert take(make_loader(num_workers=1), 9) == expected
    assert take(make_loader(num_workers=2, begin=4), 5) == expected[4:]


def test_another_seed_is_another_stream():
    one, two = (take(make_loader(seed=seed), 10) for seed in (5, 6))
    assert files(batch for batch, _ in one) != files(batch for batch, _ in two)
    assert not {step for _, step in one} & {step for _, step in two}
    drawn = [{d["random"] for batch, _ in x for d in batch} for x in (one, two)]
    assert not drawn[0] & drawn[1]


def test_what_was_drawn_before_changes_nothing():
    loader = make_loader()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(random.SystemRandom().randrange(2**32))
    assert take(loader, 3) == take(make_loader(), 3)


def test_processes_share_the_stream(monkeypatch):
    """Two processes see together what one sees, with the same augmentation, but other steps."""
    one = take(make_loader(aspect_ratio_grouping=False), 6)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    two = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        two.append(take(make_loader(aspect_ratio_grouping=False), 6))
    for (batch, step), (first, first_step), (second, second_step) in zip(one, *two):
        assert batch[0::2] == first and batch[1::2] == second
        assert step == first_step != second_step
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="IMS_PER_BATCH.*4.*3 processes"):
        make_loader()


@pytest.mark.parametrize("grouping", [True, False])
def test_parts_are_those_of_more_processes(monkeypatch, grouping):
    """Two processes with two parts see, by turns, what four processes see, and draw the same."""
    four, two = [], []
    for world_size, num_parts, seen in ((4, 1, four), (2, 2, two)):
        monkeypatch.setattr(comm, "get_world_size", lambda n=world_size: n)
        for rank in range(world_size):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            kwargs = {"aspect_ratio_grouping": grouping, "num_parts": num_parts}
            seen.append(take(make_loader(**kwargs), 6 * num_parts))
            assert take(make_loader(begin=4, **kwargs), 2 * num_parts) == seen[-1][4 * num_parts :]
    for rank, seen in enumerate(two):
        assert seen[0::2] == four[rank] and seen[1::2] == four[rank + 2]
    with pytest.raises(ValueError, match="IMS_PER_BATCH.*4.*2 processes.*ACCUMULATION_PARTS 3"):
        make_loader(num_parts=3)


@pytest.mark.parametrize("size", [0, -4])
def test_batches_have_images(size):
    sampler = make_sampler("uniform")
    with pytest.raises(ValueError, match=f"IMS_PER_BATCH is {size}"):
        TrainingLoader(DATA, mapper=example, sampler=sampler, total_batch_size=size)


@pytest.fixture
def cfg():
    """Samples a random half of 40 images, two at a time."""
    name = "test_loader"
    content = [{"file_name": f"{i}.png", "width": 3, "height": 2} for i in range(40)]
    DatasetCatalog.register(name, lambda: content)
    MetadataCatalog.get(name).thing_classes = ["cat"]
    cfg = default_config()
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = 3
    yield cfg
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_loader_of_a_config(cfg):
    def epoch():
        return files(itertools.islice(TrainingLoader(cfg, mapper=dict), 10))

    first = epoch()
    names = {name for batch in first for name in batch}
    assert len(names) == 20
    np.random.seed(8)
    expected = np.random.rand()
    np.random.seed(8)
    assert epoch() == first, "another subset or order"
    np.random.seed(8)
    TrainingLoader(cfg, mapper=dict)
    assert np.random.rand() == expected, "building draws from the generator of the process"
    cfg.SEED = 4
    assert {name for batch in epoch() for name in batch} != names
