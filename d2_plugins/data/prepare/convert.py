"""Conversion of VOC XML and YOLO datasets to COCO JSON, with a split where there is none."""

import json
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...files import atomic_open
from ..coco_json import Json
from ..datasets.derived_coco import coco_content
from .sources import LabelledImage, Source, read_voc, read_yolo
from .split import stratified_split

__all__ = ["FORMATS", "Converted", "convert", "split_coco", "split_source", "write_splits"]

FORMATS = {"voc": read_voc, "yolo": read_yolo}


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A COCO JSON that has been written.

    Attributes:
        json_file: the annotations.
        image_root: folder that its file names are relative to.
        images: number of images.
        objects: number of annotations.
    """

    json_file: Path
    image_root: Path
    images: int
    objects: int

    def __str__(self) -> str:
        return f"{self.json_file}: {self.images} images, {self.objects} objects"


def convert(
    source: Path,
    output: Path,
    *,
    form: str | None = None,
    split: float | None = None,
    seed: int = 0,
) -> list[Converted]:
    """Convert a dataset to one COCO JSON per split.

    Args:
        source: folder of the dataset; images stay where they are.
        output: folder for ``train.json``, ``val.json``, ...; ``annotations.json`` without splits.
        form: key of ``FORMATS``; None recognizes it.
        split: fraction of the images in ``train.json``, the others being in ``val.json``, by
            image and stratified by class; None keeps the splits of the dataset.
        seed: seed of the split.

    Returns:
        The written files, in order.

    Raises:
        UsageError: the dataset cannot be read, or a file to write exists already.
        OSError: a file cannot be written.
    """
    if split is not None and not 0 < split < 1:
        raise UsageError(f"split is {split}; allowed: numbers between 0 and 1, such as 0.8")
    if not source.is_dir():
        raise UsageError(f"there is no folder {source}")
    dataset = FORMATS[form or _recognize(source)](source)
    if split is not None:
        dataset = split_source(dataset, split, seed)
    for name, images in dataset.splits.items():
        file = output / f"{name}.json"
        if not images:
            raise UsageError(f"{source} has no images for {file.name}")
        if file.exists():
            raise UsageError(f"{file} exists already: remove it, or choose another --output")
    return list(write_splits(dataset, source, output).values())


def write_splits(dataset: Source, source: Path, output: Path) -> dict[str, Converted]:
    """Write one COCO JSON per split, instead of existing ones.

    Args:
        dataset: the dataset.
        source: its folder, which the file names are relative to.
        output: folder of the JSONs, each named after its split.

    Returns:
        The written files by split.
    """
    return {
        name: _write(output / f"{name}.json", source, dataset, images)
        for name, images in dataset.splits.items()
    }


def _recognize(source: Path) -> str:
    if any(source.rglob("*.xml")):
        return "voc"
    if any(source.glob("*.y*ml")) or any(source.rglob("*.txt")):
        return "yolo"
    raise UsageError(f"{source} holds neither VOC's XML files nor YOLO's text files")


def split_source(dataset: Source, fraction: float, seed: int) -> Source:
    """Split all images of a dataset again into "train" and "val", stratified by class.

    An image that is in several splits is used once.

    Args:
        dataset: the dataset.
        fraction: fraction of the images in "train".
        seed: seed of the split.
    """
    unique = {image.file: image for images in dataset.splits.values() for image in images}
    images = [unique[file] for file in sorted(unique)]
    labels = [{entry["name"] for entry in image.objects} for image in images]
    parts = stratified_split(labels, fraction, seed)
    splits = zip(("train", "val"), parts, strict=True)
    return replace(dataset, splits={name: [images[i] for i in part] for name, part in splits})


def split_coco(content: Json, fraction: float, seed: int) -> dict[str, Json]:
    """Split the content of a COCO JSON by image into "train" and "val", stratified by class.

    Args:
        content: from :func:`~d2_plugins.data.coco_json.read_coco`.
        fraction: fraction of the images in "train".
        seed: seed of the split.

    Returns:
        The contents of two JSONs, with everything but images and annotations in both.
    """
    # repr makes keys of ids that are not valid, which the pre-flight check finds.
    ids = [repr(image.get("id")) for image in content["images"]]
    labels: dict[str, set[Hashable]] = {image_id: set() for image_id in ids}
    for annotation in content["annotations"]:
        category = repr(annotation.get("category_id"))
        labels.setdefault(repr(annotation.get("image_id")), set()).add(category)
    parts = stratified_split([labels[image_id] for image_id in ids], fraction, seed)
    return {
        name: _select(content, part) for name, part in zip(("train", "val"), parts, strict=True)
    }


def _select(content: Json, part: list[int]) -> Json:
    images = [content["images"][index] for index in part]
    ids = {repr(image.get("id")) for image in images}
    annotations = [a for a in content["annotations"] if repr(a.get("image_id")) in ids]
    return content | {"images": images, "annotations": annotations}


def _write(file: Path, source: Path, dataset: Source, images: list[LabelledImage]) -> Converted:
    root = source.absolute()
    category_ids = {name: number for number, name in enumerate(dataset.class_names, start=1)}
    entries, annotations = [], []
    for number, image in enumerate(images, start=1):
        path = image.file.absolute()  # links stay as they are
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        width, height = image.size
        entries.append({"id": number, "file_name": name, "width": width, "height": height})
        annotations.append([_annotation(entry, category_ids) for entry in image.objects])
    with atomic_open(file) as target:
        json.dump(coco_content(entries, annotations, dataset.class_names), target)
    count = sum(map(len, annotations))
    return Converted(json_file=file, image_root=source, images=len(images), objects=count)


def _annotation(entry: dict[str, Any], category_ids: dict[str, int]) -> dict[str, Any]:
    _, _, width, height = entry["bbox"]
    area = width * height
    if "segmentation" in entry:
        area = _polygon_area(entry["segmentation"][0])
    found = {"category_id": category_ids[entry["name"]], "area": area, "iscrowd": 0}
    return found | {key: value for key, value in entry.items() if key != "name"}


def _polygon_area(points: list[float]) -> float:
    """Return the area inside a polygon x1, y1, x2, y2, ... (shoelace formula)."""
    xs, ys = points[::2], points[1::2]
    ends = zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for x0, y0, x1, y1 in ends)) / 2
