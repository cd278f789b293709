"""Fixtures of the data tests."""

from collections.abc import Iterator

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


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
