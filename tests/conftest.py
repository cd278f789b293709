"""Fixtures and defaults of the whole suite."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_configure(config: pytest.Config) -> None:
    # Two workers on two cores: more threads only wait for each other.
    torch.set_num_threads(1)
