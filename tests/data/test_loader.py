"""The training loader: order and augmentations depend only on seed and iteration."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler

from d2_plugins import get_cfg
from d2_plugins.data.loader import TrainLoader, build_train_loader
from d2_plugins.errors import UsageError
from tests.support.random_coco import Registered
from tests.support.tiny_model import random_images


def random_mapper(item: dict[str, Any]) -> tuple[Any, ...]:
    """Stand-in for augmentation: draws from both generators that detectron2's transforms use."""
    return item["id"], float(np.random.rand()), float(torch.rand(()))


def make_loader(**kwargs: Any) -> TrainLoader:
    dataset = [{"id": i, "width": 10 + i % 3, "height": 11} for i in range(17)]
    options: dict[str, Any] = {"batch_size": 4, "seed": 3, **kwargs}
    return TrainLoader(
        dataset,
        mapper=random_mapper,
        make_sampler=lambda seed: TrainingSampler(len(dataset), seed=seed),
        **options,
    )


def take(loader: TrainLoader, count: int) -> list[list[Any]]:
    return list(itertools.islice(iter(loader), count))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_seek_continues_the_stream(num_workers: int) -> None:
    whole = take(make_loader(), 12)
    resumed = make_loader(num_workers=num_workers)
    resumed.seek(5, 3)
    assert take(resumed, 7) == whole[5:]


def test_another_seed_gives_another_stream() -> None:
    assert take(make_loader(), 3) != take(make_loader(seed=4), 3)


def test_every_sample_has_its_own_augmentation() -> None:
    draws = [sample[1:] for batch in take(make_loader(), 12) for sample in batch]
    assert len(set(draws)) == len(draws)


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    take(make_loader(), 2)
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])


def test_batches_hold_one_aspect_ratio_and_every_image_once_an_epoch() -> None:
    def sizes(batch: list[Any]) -> set[bool]:
        return {10 + sample[0] % 3 > 11 for sample in batch}

    assert all(len(sizes(batch)) == 1 for batch in take(make_loader(), 10))
    ungrouped = make_loader(aspect_ratio_grouping=False, batch_size=17)
    for epoch in take(ungrouped, 2):
        assert sorted(sample[0] for sample in epoch) == list(range(17))


def of_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int = 2) -> None:
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: world_size)
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: rank)


def test_processes_share_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_epoch() -> Iterator[int]:
        for rank in range(2):
            of_rank(monkeypatch, rank)
            loader = make_loader(aspect_ratio_grouping=False, batch_size=1)
            yield from (batch[0][0] for batch in itertools.islice(loader.batches(), 9 - rank))

    assert sorted(first_epoch()) == list(range(17))


def test_processes_augment_differently_and_each_repeats_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draws(rank: int) -> list[tuple[float, ...]]:
        of_rank(monkeypatch, rank)
        return [sample[1:] for batch in take(make_loader(), 6) for sample in batch]

    first, second = draws(0), draws(1)
    assert draws(0) == first
    assert draws(1) == second
    assert not set(first) & set(second)


def test_the_stream_does_not_depend_on_the_number_of_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Image and augmentation at each place of the stream are those of a run with one process."""
    options: dict[str, Any] = {"aspect_ratio_grouping": False, "batch_size": 1}
    alone = [batch[0] for batch in take(make_loader(**options), 20)]
    for rank in range(2):
        of_rank(monkeypatch, rank)
        shared = [batch[0] for batch in take(make_loader(**options), 10)]
        assert shared == alone[rank::2]


def test_repeat_factor_sampler_repeats_images_of_rare_classes(tmp_path: Path) -> None:
    """Of 8 images one has the rare class; threshold 0.5 gives it the factor sqrt(0.5 / 0.125)."""
    data = random_images(tmp_path, seed=0, num_images=8)
    rare, common = {"category_id": 3}, {"category_id": 7}
    base = {"bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0}
    data["annotations"] = [
        {"id": i + 1, "image_id": image["id"], **base, **(common if i else rare)}
        for i, image in enumerate(data["images"])
    ]
    with Registered(tmp_path, data, "loader_data") as name:
        cfg = get_cfg()
        cfg.DATASETS.TRAIN = (name,)
        cfg.SOLVER.IMS_PER_BATCH = 1
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
        cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
        loader = build_train_loader(cfg, lambda item: Path(item["file_name"]).name)
        names = [batch[0] for batch in take(loader, 90)]
    assert names.count("0.png") == 20
    assert {names.count(f"{i}.png") for i in range(1, 8)} == {10}


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        ("TrainingSampeler", "allowed: TrainingSampler, RepeatFactorTrainingSampler"),
        ("RandomSubsetTrainingSampler", "needs the key DATALOADER.RANDOM_SUBSET_RATIO"),
        ("WeightedTrainingSampler", "needs the key DATASETS.TRAIN_REPEAT_FACTOR"),
    ],
)
def test_samplers_that_cannot_be_built_are_refused(sampler: str, said: str) -> None:
    cfg = get_cfg()
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    with pytest.raises(UsageError, match=f"DATALOADER.SAMPLER_TRAIN is '{sampler}'.*{said}"):
        build_train_loader(cfg, lambda item: item)


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    of_rank(monkeypatch, 0, world_size=3)
    with pytest.raises(UsageError, match=r"SOLVER\.IMS_PER_BATCH is 16.*multiples of 3"):
        build_train_loader(get_cfg(), lambda item: item)
