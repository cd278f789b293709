"""What the tests of one worker, and those of all workers, share."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.sandbox import Programs


@pytest.fixture(scope="session")
def programs() -> Iterator[Programs]:
    with tempfile.TemporaryDirectory() as folder, Programs(Path(folder)) as running:
        yield running


@pytest.fixture(scope="session")
def pages_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of a session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "documented"
    folder.mkdir(exist_ok=True)
    return folder
