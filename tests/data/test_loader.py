"""The training loader: its order and its augmentations depend on seed and iteration alone."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler

from d2_plugins.data.loader import TrainLoader


def random_mapper(item: dict[str, Any]) -> tuple[Any, ...]:
    """Stands for augmentation: draws from both generators that detectron2's transforms use."""
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


def test_every_sample_is_augmented_anew() -> None:
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


def test_processes_share_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_epoch() -> Iterator[int]:
        for rank in range(2):
            monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
            loader = make_loader(aspect_ratio_grouping=False, batch_size=1)
            yield from (batch[0][0] for batch in itertools.islice(loader.batches(), 9 - rank))

    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    assert sorted(first_epoch()) == list(range(17))
