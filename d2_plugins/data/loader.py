"""A training data loader whose order is a function of seed and iteration alone.

detectron2's loader draws an endless stream, so a resumed run sees other images in another order,
and its augmentations depend on the number of worker processes. Here batches are made of indices
first: a resumed run skips those it has had without reading an image, and every sample is
augmented with a seed of its own.
"""

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    MapDataset,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

__all__ = ["TrainLoader", "build_train_loader", "sample_seed"]

# A sample of the stream: its index in the data set and its place in the stream of all workers.
_Sample = tuple[int, int]


def sample_seed(*entropy: int) -> int:
    """A well-mixed 32-bit seed from a few integers."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


class TrainLoader:
    """An endless, seekable source of batches.

    Iterating gives lists of mapped samples. :meth:`seek` sets where the next iterator starts.
    """

    def __init__(
        self,
        dataset: Sequence[dict[str, Any]],
        *,
        mapper: Callable[[dict[str, Any]], Any],
        make_sampler: Callable[[int], Sampler],
        batch_size: int,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        """Args:
        dataset: detectron2's dataset dicts; with ``width`` and ``height`` if grouped.
        mapper: maps a dataset dict to what the model takes.
        make_sampler: from a seed, an endless sampler of this process' share of the indices.
        batch_size: images per batch of this process.
        aspect_ratio_grouping: put images wider than high, and the others, in batches of their
            own, which saves padding.
        num_workers: loading processes; does not change what is loaded.
        seed: of the order and of every sample's augmentation; equal in all processes.
        """
        # The list itself is not kept: loading processes share detectron2's serialised form.
        self._mapped = MapDataset(DatasetFromList(list(dataset), copy=False), mapper)
        self._is_wide = (
            [item["width"] > item["height"] for item in dataset] if aspect_ratio_grouping else None
        )
        self.make_sampler = make_sampler
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.start_iter = 0

    def seek(self, iteration: int, seed: int) -> None:
        """Let the next iterator start with the batch of ``iteration`` of a run with ``seed``."""
        self.start_iter = iteration
        self.seed = seed

    def batches(self) -> Iterator[list[_Sample]]:
        """Batches of samples from iteration ``start_iter`` on, without reading any image."""
        return itertools.islice(self._all_batches(), self.start_iter, None)

    def _all_batches(self) -> Iterator[list[_Sample]]:
        world_size, rank = comm.get_world_size(), comm.get_rank()
        groups: tuple[list[_Sample], list[_Sample]] = ([], [])
        for place, index in enumerate(self.make_sampler(self.seed)):
            group = groups[self._is_wide is not None and self._is_wide[index]]
            group.append((index, place * world_size + rank))
            if len(group) == self.batch_size:
                yield group[:]
                group.clear()

    def __iter__(self) -> Iterator[list[Any]]:
        """Batches of mapped samples, without end."""
        loader = DataLoader(
            _SeededDataset(self._mapped, self.seed),
            batch_sampler=_BatchSampler(self),
            num_workers=self.num_workers,
            collate_fn=trivial_batch_collator,
            # One of its own: by default making the iterator draws from the global generator.
            generator=torch.Generator().manual_seed(self.seed),
        )
        return iter(loader)


class _BatchSampler(Sampler):
    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[_Sample]]:
        return self._loader.batches()


class _SeededDataset(Dataset):
    """Gives every sample of the stream its own random state, whichever process maps it."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed

    def __getitem__(self, sample: _Sample) -> Any:
        index, place = sample
        with _seeded(sample_seed(self._seed, place)):
            return self._dataset[index]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's, numpy's and Python's global generators, and give their states back after."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def build_train_loader(
    cfg: CfgNode, mapper: Callable[[dict[str, Any]], Any]
) -> "TrainLoader | Any":
    """The training loader that ``cfg.DATASETS`` and ``cfg.DATALOADER`` describe.

    A :class:`TrainLoader`, except for detectron2's weighted samplers, which take no seed: they
    come in detectron2's own loader, whose order a resumed run does not continue.

    Raises:
        ValueError: the batch cannot be split over the processes, or the sampler is unknown.
    """
    sampler_name = cfg.DATALOADER.SAMPLER_TRAIN
    if sampler_name in ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"):
        return build_detection_train_loader(cfg, mapper=mapper)
    world_size = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {world_size} processes "
            f"cannot share evenly; allowed: multiples of {world_size}"
        )
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    dataset = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )
    return TrainLoader(
        dataset,
        mapper=mapper,
        make_sampler=_sampler_factory(cfg, dataset),
        batch_size=cfg.SOLVER.IMS_PER_BATCH // world_size,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _sampler_factory(cfg: CfgNode, dataset: list[dict[str, Any]]) -> Callable[[int], Sampler]:
    name, size = cfg.DATALOADER.SAMPLER_TRAIN, len(dataset)
    if name == "TrainingSampler":
        return lambda seed: TrainingSampler(size, seed=seed)
    if name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
        return lambda seed: RandomSubsetTrainingSampler(
            size, ratio, seed_shuffle=seed, seed_subset=seed
        )
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN is '{name}'; allowed: TrainingSampler, "
        "RepeatFactorTrainingSampler, RandomSubsetTrainingSampler, WeightedTrainingSampler, "
        "WeightedCategoryTrainingSampler"
    )
