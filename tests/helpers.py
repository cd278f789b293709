"""What several test files share."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def shared_path(relative: str) -> Path:
    """Path of a reference file beside the checkout; skips the test where it is missing."""
    root = Path(os.environ.get("D2_PLUGINS_SHARED", REPO.parent / "shared"))
    path = root / relative
    if not path.exists():
        pytest.skip(f"reference data '{relative}' is not at hand (set D2_PLUGINS_SHARED)")
    return path
