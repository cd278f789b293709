"""Training data loader whose order depends only on the seed and the iteration.

With detectron2's loader a resumed run sees other images in another order, and augmentations
depend on the number of worker processes. This one first makes batches of indices: a resumed run
skips past batches without reading images, and every sample is augmented with its own seed.
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
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import UsageError
from .proposals import dataset_with_proposals

__all__ = ["TrainLoader", "build_test_loader", "build_train_loader", "sample_seed"]

# A sample of the stream: its index in the dataset and its place in the stream of all processes.
_Sample = tuple[int, int]

# DATALOADER.SAMPLER_TRAIN, and a key that detectron2 reads for it but has no default of.
_SAMPLERS = {
    "TrainingSampler": "",
    "RepeatFactorTrainingSampler": "",
    "RandomSubsetTrainingSampler": "DATALOADER.RANDOM_SUBSET_RATIO",
    "WeightedTrainingSampler": "DATASETS.TRAIN_REPEAT_FACTOR",
    "WeightedCategoryTrainingSampler": "DATASETS.TRAIN_REPEAT_FACTOR",
}


def sample_seed(*entropy: int) -> int:
    """Mix a few integers into a 32-bit seed."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


class TrainLoader:
    """Endless training loader that can start at any iteration.

    Iterating yields batches, which are lists of mapped samples. :meth:`seek` sets the iteration
    at which the next iterator starts.

    Attributes:
        num_images: number of images in the dataset.
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
        """Initialize the loader at iteration 0.

        Args:
            dataset: detectron2's dataset dicts; with ``width`` and ``height`` for grouping.
            mapper: function from a dataset dict to an input of the model.
            make_sampler: function from a seed to an endless sampler of this process's indices.
            batch_size: number of images per batch in this process.
            aspect_ratio_grouping: make separate batches of landscape and of portrait images,
                which saves padding.
            num_workers: number of loading processes; does not change what is loaded.
            seed: seed of the order and of all augmentations; the same in all processes.
        """
        # Do not keep the list: loading processes share detectron2's serialized form of it.
        self._mapped = MapDataset(DatasetFromList(list(dataset), copy=False), mapper)
        self._is_wide = (
            [item["width"] > item["height"] for item in dataset] if aspect_ratio_grouping else None
        )
        self.num_images = len(dataset)
        self.make_sampler = make_sampler
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.start_iter = 0

    def seek(self, iteration: int, seed: int) -> None:
        """Start the next iterator at the batch of ``iteration`` in a run with ``seed``."""
        self.start_iter = iteration
        self.seed = seed

    def batches(self) -> Iterator[list[_Sample]]:
        """Yield batches of samples from iteration ``start_iter`` on, without reading images."""
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
        """Yield batches of mapped samples without end."""
        loader = DataLoader(
            _SeededDataset(self._mapped, self.seed),
            batch_sampler=_BatchSampler(self),
            num_workers=self.num_workers,
            collate_fn=trivial_batch_collator,
            # By default, making the iterator draws from the global generator.
            generator=torch.Generator().manual_seed(self.seed),
        )
        return iter(loader)


class _BatchSampler(Sampler):
    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[_Sample]]:
        return self._loader.batches()


class _SeededDataset(Dataset):
    """Gives every sample of the stream its own random state, in any loading process."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed

    def __getitem__(self, sample: _Sample) -> Any:
        index, place = sample
        with _seeded(sample_seed(self._seed, place)):
            return self._dataset[index]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python, and restore them afterwards."""
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
    """Build the training loader from ``cfg.DATASETS`` and ``cfg.DATALOADER``.

    Args:
        cfg: the config.
        mapper: function from a dataset dict to an input of the model.

    Returns:
        A :class:`TrainLoader`. detectron2's weighted samplers take no seed: with them, its own
        loader is returned, whose order a resumed run does not continue.

    Raises:
        UsageError: the batch cannot be split over the processes, or the sampler is unknown or
            lacks its config key.
    """
    _check_sampler(cfg)
    if cfg.DATALOADER.SAMPLER_TRAIN.startswith("Weighted"):
        if cfg.MODEL.LOAD_PROPOSALS:  # detectron2's weighted samplers would unpickle the files
            raise UsageError("MODEL.LOAD_PROPOSALS is True; allowed with weighted samplers: False")
        return build_detection_train_loader(cfg, mapper=mapper)
    world_size = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise UsageError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {world_size} processes "
            f"cannot share evenly; allowed: multiples of {world_size}"
        )
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    dataset = dataset_with_proposals(
        cfg,
        cfg.DATASETS.TRAIN,
        cfg.DATASETS.PROPOSAL_FILES_TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints,
    )
    return TrainLoader(
        dataset,
        mapper=mapper,
        make_sampler=_sampler_factory(cfg, dataset),
        batch_size=cfg.SOLVER.IMS_PER_BATCH // world_size,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def build_test_loader(
    cfg: CfgNode, dataset_name: str, mapper: Callable[[dict[str, Any]], Any]
) -> DataLoader:
    """Build detectron2's test loader for one of ``cfg.DATASETS.TEST``.

    Args:
        cfg: the config.
        dataset_name: name of the dataset.
        mapper: function from a dataset dict to an input of the model.
    """
    files: list[str] = []
    if cfg.MODEL.LOAD_PROPOSALS:
        files = [cfg.DATASETS.PROPOSAL_FILES_TEST[cfg.DATASETS.TEST.index(dataset_name)]]
    dataset = dataset_with_proposals(cfg, [dataset_name], files, filter_empty=False)
    return build_detection_test_loader(
        dataset, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )


def _check_sampler(cfg: CfgNode) -> None:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in _SAMPLERS:
        allowed = ", ".join(_SAMPLERS)
        raise UsageError(f"DATALOADER.SAMPLER_TRAIN is '{name}'; allowed: {allowed}")
    key = _SAMPLERS[name]
    if key:
        node, _, leaf = key.partition(".")
        if leaf not in cfg[node]:
            raise UsageError(
                f"DATALOADER.SAMPLER_TRAIN is '{name}', which needs the key {key}; detectron2's "
                f"config does not have it: set cfg.{key} in Python first"
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
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
    return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)
