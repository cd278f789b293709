"""Files and folders that are written completely or not at all."""

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

__all__ = ["atomic_open", "atomic_write_json", "staging"]


@contextlib.contextmanager
def atomic_open(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open ``path`` for writing, so that it changes only when the block ends without an error.

    The content goes to a file next to it, is synchronized to the disk, and gets the name in one
    step: a reader, also after a kill at any moment, sees either the old or the new content.

    Args:
        path: the file to write; its folder is created if needed.
        mode: "w" or "wb".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; set the mode that open() would have set.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(aside, 0o666 & ~umask)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, completely or not at all.

    JSON has neither NaN nor infinity: such numbers, for example an AP without any ground truth,
    are written as null.
    """
    with atomic_open(path) as file:
        json.dump(_finite(value), file, indent=2, allow_nan=False)
        file.write("\n")


@contextlib.contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """Create an empty folder on the disk of ``parent``, to be filled and renamed, then removed.

    Args:
        parent: folder of the final path; created if needed.
    """
    parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=parent, prefix=".d2_plugins.", suffix=".part"))
    try:
        whole = aside / "data"  # mkdtemp's own folder is private to the user
        whole.mkdir()
        yield whole
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
