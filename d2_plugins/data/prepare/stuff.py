"""COCO's stuff annotations, in the form that detectron2's panoptic FPN trains on.

COCO publishes one picture per image, whose colours are the ids of segments, and the categories of
the segments in a JSON file. Panoptic FPN (Kirillov et al. 2019) learns a semantic segmentation in
which all things are one class: 0, and the stuff classes 1, 2, ... in the order of COCO's ids.
"""

import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from tqdm import tqdm

from ...errors import UsageError
from ...files import staging
from .unpack import unpack

__all__ = ["derive_stuff", "semantic_map"]

logger = logging.getLogger(__name__)

_UNLABELLED = 255


def derive_stuff(home: Path, split: str) -> None:
    """Write ``panoptic_<split>2017`` and ``panoptic_stuff_<split>2017``, unless they exist.

    Args:
        home: COCO's folder, with ``annotations/panoptic_<split>2017.{json,zip}``.
        split: "train" or "val".

    Raises:
        UsageError: the pictures are missing or damaged.
    """
    json_file = home / "annotations" / f"panoptic_{split}2017.json"
    pictures = home / f"panoptic_{split}2017"
    target = home / f"panoptic_stuff_{split}2017"
    if not pictures.exists():
        archive = json_file.with_suffix(".zip")
        if not archive.is_file():
            raise UsageError(f"{pictures} and {archive} are missing; one of them is needed")
        with staging(home) as aside:
            unpack(archive, aside)
            if not (aside / pictures.name).is_dir():
                raise UsageError(f"{archive} does not hold {pictures.name}")
            os.replace(aside / pictures.name, pictures)
    if target.exists():
        return
    logger.info("Writing %s (once)", target)
    content = json.loads(json_file.read_text(encoding="utf-8"))
    with staging(home) as aside:
        folder = aside / target.name
        folder.mkdir()
        _convert(content["annotations"], pictures, folder)
        os.replace(folder, target)


def _convert(annotations: list[dict[str, Any]], pictures: Path, folder: Path) -> None:
    labels = _labels()

    def convert(annotation: dict[str, Any]) -> None:
        name = annotation["file_name"]
        try:
            colours = np.asarray(Image.open(pictures / name).convert("RGB"))
            segments = {s["id"]: labels[s["category_id"]] for s in annotation["segments_info"]}
            Image.fromarray(semantic_map(colours, segments)).save(folder / name)
        except (OSError, KeyError) as error:
            raise UsageError(f"{pictures / name} cannot be converted: {error!r}") from error

    with ThreadPoolExecutor() as pool:  # Pillow and numpy release the interpreter's lock
        done = pool.map(convert, annotations)
        for _ in tqdm(done, folder.name, len(annotations), unit=" files", disable=None):
            pass


def _labels() -> dict[int, int]:
    """Return the semantic class of each of COCO's category ids."""
    stuff = [c["id"] for c in COCO_CATEGORIES if not c["isthing"]]
    things = {c["id"]: 0 for c in COCO_CATEGORIES if c["isthing"]}
    return things | {category: label for label, category in enumerate(stuff, start=1)}


def semantic_map(colours: np.ndarray, labels: Mapping[int, int]) -> np.ndarray:
    """Return the class of each pixel.

    Args:
        colours: (H, W, 3) uint8. A segment's id is R + 256 G + 256^2 B.
        labels: class of each segment, by its id.

    Returns:
        (H, W) uint8: the class, and 255 where there is no segment.
    """
    ids = colours.astype(np.int64) @ (1, 256, 256**2)
    found, where = np.unique(ids, return_inverse=True)
    classes = np.array([labels.get(int(i), _UNLABELLED) for i in found], dtype=np.uint8)
    return classes[where].reshape(ids.shape)
