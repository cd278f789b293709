"""The files of your own data, which are recorded in the folder of a run."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import UsageError
from ..files import atomic_write_json

__all__ = ["OwnFiles"]

_FILE_NAME = "data.json"


@dataclass(frozen=True, kw_only=True)
class OwnFiles:
    """Paths of COCO JSON files and of their image folders, as the options of a training name them.

    Attributes:
        train_json: annotations to train on; None, with ``train_images``, without training data.
        train_images: folder of the training images.
        val_json: annotations to evaluate on; None, with ``val_images``, without validation data.
        val_images: folder of the validation images.
    """

    train_json: str | None = None
    train_images: str | None = None
    val_json: str | None = None
    val_images: str | None = None

    def write(self, folder: str | Path) -> None:
        """Write ``data.json`` into the folder of a run.

        Paths inside the folder are written relative to it, so that they are right after the folder
        has been moved; the others are absolute.
        """
        root = Path(folder).absolute()
        paths = {key: path and _shorten(Path(path).absolute(), root) for key, path in self._items()}
        atomic_write_json(root / _FILE_NAME, paths)

    @classmethod
    def read(cls, folder: str | Path) -> "OwnFiles | None":
        """Read ``data.json`` in the folder of a run; None if it is missing or not valid."""
        try:
            content = json.loads((Path(folder) / _FILE_NAME).read_text("utf-8"))
            paths = {key: content[key] for key, _ in cls()._items()}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not all(path is None or isinstance(path, str) for path in paths.values()):
            return None
        return cls(**{key: path and os.path.join(folder, path) for key, path in paths.items()})

    def check(self, where: str) -> None:
        """Check that the files still exist.

        Args:
            where: the record that names them, for the message.

        Raises:
            UsageError: a file or folder is missing; the message says how to name another one.
        """
        for key, path in self._items():
            if path and not os.path.exists(path):
                split = key.split("_")[0]
                raise UsageError(
                    f"{where} says that the data of this run are in {path}, which does not exist; "
                    f"give --{split}-json FILE and --{split}-images DIR, or --data DIR"
                )

    def _items(self) -> list[tuple[str, str | None]]:
        return list(asdict(self).items())


def _shorten(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
