"""PASCAL VOC 2007 and 2012 as COCO datasets: COCO's metrics on VOC's boxes.

detectron2 registers the same images and boxes, with VOC's metric, under names without ``_coco``.
"""

import hashlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from ...errors import UsageError
from .derived_coco import CocoDataset, coco_content, derive_json

__all__ = ["read_annotation", "read_objects", "voc_datasets", "voc_layout_dataset"]

_SPLITS = {2007: ("train", "val", "trainval", "test"), 2012: ("train", "val", "trainval")}


def voc_datasets(root: Path) -> list[CocoDataset]:
    """List ``voc_{2007,2012}_{train,val,trainval}_coco`` and ``voc_2007_test_coco``."""
    return [_dataset(root, year, split) for year, splits in _SPLITS.items() for split in splits]


def _dataset(root: Path, year: int, split: str) -> CocoDataset:
    return voc_layout_dataset(
        root,
        f"VOC{year}",
        split,
        name=f"voc_{year}_{split}_coco",
        json_name=f"voc_{year}_{split}.json",
        class_names=CLASS_NAMES,
        content=_content,
        adapt=_learn_difficult,
        extra_keys=("difficult",),
    )


def voc_layout_dataset(
    root: Path,
    folder_name: str,
    split: str,
    *,
    name: str,
    json_name: str,
    class_names: tuple[str, ...],
    content: Callable[[Path, list[str]], dict[str, Any]],
    **options: Any,
) -> CocoDataset:
    """Return a dataset that lies on disk as VOC does.

    Args:
        root: the dataset root.
        folder_name: folder with ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: name of the list in ``ImageSets/Main``.
        name: name in detectron2's catalogs.
        json_name: name of the derived COCO JSON.
        class_names: names of the classes.
        content: function from the folder and the names of the split's images to COCO content.
        options: further attributes of :class:`CocoDataset`.
    """
    folder = root / folder_name
    list_file = folder / "ImageSets" / "Main" / f"{split}.txt"
    json_file = root / "d2_plugins" / json_name

    def derive() -> None:
        names = list_file.read_text().split()
        source = hashlib.sha256("\n".join(names).encode()).hexdigest()
        derive_json(json_file, source, lambda: content(folder, names))

    return CocoDataset(
        name=name,
        class_names=class_names,
        json_file=json_file,
        image_root=folder / "JPEGImages",
        requires=(list_file, folder / "Annotations", folder / "JPEGImages"),
        derive=derive,
        **options,
    )


def _learn_difficult(annotation: dict[str, Any]) -> None:
    # VOC's metric ignores difficult objects, as COCO's metric does with crowds, so the JSON has
    # iscrowd. In training they are normal objects, as in detectron2's own VOC.
    if annotation.pop("difficult"):
        annotation["iscrowd"] = 0


def _content(folder: Path, names: list[str]) -> dict[str, Any]:
    images, annotations = [], []
    for name in names:
        size, objects = read_annotation(folder / "Annotations" / f"{name}.xml")
        # "000005" and "2007_000027" are numbers without the underscore, and stay unique.
        images.append({"id": int(name.replace("_", "")), "file_name": f"{name}.jpg", **size})
        annotations.append(objects)
    return coco_content(images, annotations, CLASS_NAMES)


def read_annotation(
    path: Path, class_names: tuple[str, ...] = CLASS_NAMES
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Read one of VOC's XML files.

    VOC counts pixels from 1 and includes the last one; COCO's boxes are continuous coordinates,
    so the corner moves by 1 and the far side stays, as in detectron2.

    Args:
        path: the file.
        class_names: names of the classes; the category ids are 1, 2, ...

    Returns:
        Width and height, and COCO annotations without ids.

    Raises:
        UsageError: the file is not VOC's XML; the message names it.
    """
    _, size, objects = read_objects(path)
    try:
        if 0 in size.values():
            raise ValueError("no <size> with <width> and <height>")
        return size, [_annotation(found, class_names) for found in objects]
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def read_objects(path: Path) -> tuple[str, dict[str, int], list[dict[str, Any]]]:
    """Read an XML file in VOC's format with any class names.

    Args:
        path: the file.

    Returns:
        Name of the image file, "" if it is not given; width and height, 0 if they are not given;
        and for each object ``name``, ``bbox`` (x, y, width, height in COCO's coordinates) and
        ``difficult``.

    Raises:
        UsageError: the file is not VOC's XML; the message names it.
    """
    try:
        content = path.read_bytes()
        if b"<!ENTITY" in content:  # VOC has none, and nested ones fill the memory
            raise ValueError("XML entities are not read")
        root = ElementTree.fromstring(content)
        if root.tag != "annotation":
            raise ValueError(f"is not VOC XML: it begins with <{root.tag}>, not <annotation>")
        size = {key: int(root.findtext(f"size/{key}") or 0) for key in ("width", "height")}
        objects = [_object(element) for element in root.iterfind("object")]
        return root.findtext("filename") or "", size, objects
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UsageError(f"{path}: {error}") from error


def _annotation(found: dict[str, Any], class_names: tuple[str, ...]) -> dict[str, Any]:
    name = found["name"]
    if name not in class_names:
        raise ValueError(f"object name is '{name}'; allowed: {', '.join(class_names)}")
    _, _, width, height = found["bbox"]
    return {
        "category_id": class_names.index(name) + 1,
        "bbox": found["bbox"],
        "area": width * height,
        "iscrowd": found["difficult"],
        "difficult": found["difficult"],
    }


def _object(element: ElementTree.Element) -> dict[str, Any]:
    keys = ("xmin", "ymin", "xmax", "ymax")
    xmin, ymin, xmax, ymax = (float(_text(element, f"bndbox/{key}")) for key in keys)
    return {
        "name": _text(element, "name"),
        "bbox": [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1],
        "difficult": int(element.findtext("difficult") or 0),
    }


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no <{path}>")
    return text.strip()
