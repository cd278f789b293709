"""The names under which detectron2's catalogs know the data sets of this package."""

import os
from pathlib import Path

from .derived_coco import CocoDataset
from .penn_fudan import penn_fudan_datasets
from .shapes import shapes_datasets
from .voc import voc_datasets

__all__ = ["dataset_root", "datasets", "register_all"]


def dataset_root() -> Path:
    """``DETECTRON2_DATASETS``, or ``./datasets``: detectron2's own rule."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def datasets(root: Path) -> list[CocoDataset]:
    """All data sets of this package as they are under ``root``."""
    return [*shapes_datasets(root), *penn_fudan_datasets(root), *voc_datasets(root)]


def register_all(root: Path | None = None) -> None:
    """Register all data sets of this package; a name that is taken is left as it is.

    Args:
        root: the dataset root; None takes :func:`dataset_root`.
    """
    for dataset in datasets(root or dataset_root()):
        dataset.register()
