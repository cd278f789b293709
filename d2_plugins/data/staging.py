"""Folders that appear whole or not at all."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["staging"]


@contextlib.contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """An empty folder on the disk of ``parent``, to be filled and renamed; removed at the end.

    Args:
        parent: folder of the final place; made if needed.
    """
    parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=parent, prefix=".d2_plugins.", suffix=".part"))
    try:
        whole = aside / "data"  # mkdtemp's own folder is private to the user
        whole.mkdir()
        yield whole
    finally:
        shutil.rmtree(aside, ignore_errors=True)
