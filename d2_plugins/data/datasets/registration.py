"""Registration of this package's datasets in detectron2's catalogs."""

import os
from pathlib import Path

from .bccd import bccd_datasets
from .derived_coco import CocoDataset
from .penn_fudan import penn_fudan_datasets
from .shapes import shapes_datasets
from .voc import voc_datasets

__all__ = ["dataset_root", "datasets", "register_all"]


def dataset_root() -> Path:
    """Return the dataset root, as in detectron2: ``DETECTRON2_DATASETS`` or ``./datasets``."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def datasets(root: Path) -> list[CocoDataset]:
    """List all datasets of this package under ``root``."""
    return [
        *shapes_datasets(root),
        *penn_fudan_datasets(root),
        *bccd_datasets(root),
        *voc_datasets(root),
    ]


def register_all(root: Path | None = None) -> None:
    """Register all datasets of this package, except names that are already taken.

    Args:
        root: dataset root; None takes :func:`dataset_root`.
    """
    for dataset in datasets(root or dataset_root()):
        dataset.register()
