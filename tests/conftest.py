"""Fixtures and defaults of the whole suite."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from tests.support.toy import write_toy_coco

_TOY = "toy"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    """A training in this process adds handlers, whose streams are closed in the next test."""
    loggers = [logging.getLogger(name) for name in (None, "detectron2", "fvcore", "d2_plugins")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def pytest_configure(config: pytest.Config) -> None:
    # Two workers on two cores: more threads only wait for each other.
    torch.set_num_threads(1)


@pytest.fixture
def toy_data(tmp_path: Path) -> Iterator[list[Any]]:
    """KEY VALUE pairs that train and evaluate on it."""
    json_file, images = write_toy_coco(tmp_path)
    register_coco_instances(_TOY, {}, str(json_file), str(images))
    yield ["DATASETS.TRAIN", (_TOY,), "DATASETS.TEST", (_TOY,)]
    DatasetCatalog.remove(_TOY)
    MetadataCatalog.remove(_TOY)


@pytest.fixture
def catalogs() -> Iterator[None]:
    """Gives detectron2's catalogs back as they were."""
    datasets, metadata = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    yield
    DatasetCatalog.data = datasets
    MetadataCatalog.data = metadata


@pytest.fixture
def empty_catalogs(catalogs: None) -> None:
    """Catalogs without any name, for the time of a test."""
    DatasetCatalog.data = {}
    MetadataCatalog.data = {}
