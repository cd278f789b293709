"""Penn-Fudan pedestrians: 170 photos with instance masks (Wang et al., ACCV 2007)."""

from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from .derived_coco import CocoDataset, coco_content, derive_json

__all__ = ["penn_fudan_datasets", "read_masks"]

CLASS_NAMES = ("person",)


def penn_fudan_datasets(root: Path) -> list[CocoDataset]:
    """List ``penn_fudan_train`` (128 images) and ``penn_fudan_val`` (every 4th image, 42)."""
    return [_dataset(root, split) for split in ("train", "val")]


def _dataset(root: Path, split: str) -> CocoDataset:
    folder = root / "PennFudanPed"
    json_file = root / "d2_plugins" / f"penn_fudan_{split}.json"

    def derive() -> None:
        names = sorted(path.name for path in (folder / "PNGImages").glob("*.png"))
        derive_json(json_file, f"{len(names)} images", lambda: _content(folder, names, split))

    return CocoDataset(
        name=f"penn_fudan_{split}",
        class_names=CLASS_NAMES,
        json_file=json_file,
        image_root=folder / "PNGImages",
        requires=(folder / "PNGImages", folder / "PedMasks"),
        derive=derive,
    )


def _content(folder: Path, names: list[str], split: str) -> dict[str, Any]:
    images, annotations = [], []
    for image_id, name in enumerate(names, start=1):
        if (split == "val") != (image_id % 4 == 0):
            continue
        mask_file = folder / "PedMasks" / f"{Path(name).stem}_mask.png"
        with Image.open(folder / "PNGImages" / name) as image:
            width, height = image.size
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        annotations.append(read_masks(mask_file))
    return coco_content(images, annotations, CLASS_NAMES)


def read_masks(mask_file: Path) -> list[dict[str, Any]]:
    """Return COCO annotations without ids from a mask image, whose pixels number the instances."""
    with Image.open(mask_file) as image:
        labels = np.asarray(image)
    instances = [label for label in np.unique(labels) if label != 0]
    return [
        _annotation(mask_util.encode(np.asfortranarray(labels == i, np.uint8))) for i in instances
    ]


def _annotation(rle: dict[str, Any]) -> dict[str, Any]:
    return {
        "category_id": 1,
        "bbox": mask_util.toBbox(rle).tolist(),
        "area": int(mask_util.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
    }
