"""Messages for datasets that are not on disk."""

import re
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

__all__ = ["missing_dataset_hint", "missing_message"]

# Names of detectron2's datasets and ours, and the arguments that prepare them.
_COMMANDS = (
    (r"(keypoints_)?coco_2017_(train|val)", "coco2017"),
    (
        r"coco_2017_(train|val)_panoptic_(separated|stuffonly)",
        "coco2017 --splits panoptic-train panoptic-val",
    ),
    (r"coco_2017_test(-dev)?", "coco2017 --splits test"),
    (r"voc_(2007|2012)_(train|val|trainval|test)(_coco)?", "voc"),
    (r"penn_fudan_(train|val)", "penn_fudan"),
    (r"bccd_(train|val|test)", "bccd"),
)


def missing_dataset_hint(name: str) -> str | None:
    """Name the missing files of a registered dataset and the command that prepares it.

    Only checks that files and folders exist, without reading them.

    Args:
        name: name in detectron2's catalogs.

    Returns:
        One or two sentences; None if no file is missing or the name is unknown.
    """
    if name not in DatasetCatalog:
        return None
    metadata = MetadataCatalog.get(name)
    paths = getattr(metadata, "required_paths", None)
    if paths is None:
        keys = ("json_file", "image_root", "sem_seg_root", "dirname")
        paths = [str(getattr(metadata, key)) for key in keys if getattr(metadata, key, None)]
    missing = [path for path in paths if "://" not in path and not Path(path).exists()]
    return missing_message(name, missing[0]) if missing else None


def missing_message(name: str, path: str) -> str:
    """Say that ``path`` of dataset ``name`` is missing and, if known, how to prepare it."""
    message = f"Dataset '{name}' is not on disk: there is no {path}."
    for pattern, arguments in _COMMANDS:
        if re.fullmatch(pattern, name):
            return (
                f"{message} Prepare it with: d2-plugins prepare {arguments} "
                "(--from DIR uses files that are already on disk). The dataset root is "
                "DETECTRON2_DATASETS or ./datasets."
            )
    return message
