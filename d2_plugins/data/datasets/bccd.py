"""BCCD: 364 microscope images of blood cells with VOC annotations (Shenggan/BCCD_Dataset, MIT)."""

from pathlib import Path
from typing import Any

from .derived_coco import CocoDataset, coco_content
from .voc import read_annotation, voc_layout_dataset

__all__ = ["bccd_datasets"]

CLASS_NAMES = ("RBC", "WBC", "Platelets")
_SPLITS = ("train", "val", "test")


def bccd_datasets(root: Path) -> list[CocoDataset]:
    """Return ``bccd_train`` (205 images), ``bccd_val`` (87) and ``bccd_test`` (72)."""
    return [_dataset(root, split) for split in _SPLITS]


def _dataset(root: Path, split: str) -> CocoDataset:
    return voc_layout_dataset(
        root,
        "BCCD",
        split,
        name=f"bccd_{split}",
        json_name=f"bccd_{split}.json",
        class_names=CLASS_NAMES,
        content=_content,
    )


def _content(folder: Path, names: list[str]) -> dict[str, Any]:
    images, annotations = [], []
    for name in names:
        size, objects = read_annotation(folder / "Annotations" / f"{name}.xml", CLASS_NAMES)
        number = int(name.removeprefix("BloodImage_"))
        images.append({"id": number, "file_name": f"{name}.jpg", **size})
        annotations.append([cell for cell in objects if _has_area(cell)])
    return coco_content(images, annotations, CLASS_NAMES)


def _has_area(cell: dict[str, Any]) -> bool:
    # VOC's last pixel is inclusive: the dataset's two cells with xmin = xmax or ymin = ymax are
    # slips of the mouse, one pixel wide after the conversion.
    return min(cell["bbox"][2:]) > 1
