"""What to do about a data set that is not on disk."""

import re
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

__all__ = ["missing_dataset_hint", "missing_message"]

# Names of detectron2's and our data sets, and the arguments that prepare them.
_COMMANDS = (
    (r"(keypoints_)?coco_2017_(train|val)", "coco2017"),
    (r"coco_2017_test(-dev)?", "coco2017 --splits test"),
    (r"voc_(2007|2012)_(train|val|trainval|test)(_coco)?", "voc"),
    (r"penn_fudan_(train|val)", "penn_fudan"),
)


def missing_dataset_hint(name: str) -> str | None:
    """What is missing of a registered data set, and the command that prepares it.

    Looks only whether files and folders exist; reads nothing.

    Args:
        name: in detectron2's catalogs.

    Returns:
        A sentence or two, or None where nothing is missing or nothing is known of the name.
    """
    if name not in DatasetCatalog:
        return None
    metadata = MetadataCatalog.get(name)
    paths = getattr(metadata, "required_paths", None)
    if paths is None:
        keys = ("json_file", "image_root", "dirname")
        paths = [str(getattr(metadata, key)) for key in keys if getattr(metadata, key, None)]
    missing = [path for path in paths if "://" not in path and not Path(path).exists()]
    return missing_message(name, missing[0]) if missing else None


def missing_message(name: str, path: str) -> str:
    """Say that ``path`` of the data set ``name`` is missing, and how to prepare it if known."""
    message = f"Data set '{name}' is not at hand: there is no {path}."
    for pattern, arguments in _COMMANDS:
        if re.fullmatch(pattern, name):
            return (
                f"{message} Prepare it with: python tools/prepare_datasets.py {arguments} "
                "(--from DIR takes files that are already on disk). The dataset root is "
                "DETECTRON2_DATASETS or ./datasets."
            )
    return message
