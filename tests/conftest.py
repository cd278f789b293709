"""Fixtures and defaults of the whole suite."""

import logging
from collections.abc import Iterator

import pytest
import torch


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
