"""A look at a data set before hours are spent on it."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .images import ImageHeader, read_header
from .report import Report

__all__ = ["check_dataset"]

Json = dict[str, Any]

# From this share of boxes that are plausible only as corners on, say so.
_SUSPICIOUS_SHARE = 0.2


def check_dataset(json_file: str | Path, image_root: str | Path, *, decode: bool = False) -> Report:
    """Check a data set in COCO format.

    Args:
        json_file: annotations in COCO's instances format.
        image_root: folder of the images.
        decode: decode every image, instead of reading only headers: finds files that are cut off,
            and takes about as long as an epoch of loading.

    Returns:
        The findings; nothing about the data is raised.
    """
    report = Report(title=f"{json_file} (images in {image_root})")
    content = _read_json(report, Path(json_file))
    if content is None:
        return report
    images, annotations, categories = content
    report.num_images, report.num_annotations = len(images), len(annotations)
    names = _check_categories(report, categories)
    report.class_counts.update(dict.fromkeys(names.values(), 0))
    by_id = _check_image_entries(report, images)
    _check_annotations(report, annotations, by_id, names)
    _check_files(report, images, Path(image_root), decode)
    return report


def _read_json(report: Report, json_file: Path) -> tuple[list[Json], list[Json], list[Json]] | None:
    """The three lists of the file; None, with an error reported, where they are not to be had."""
    try:
        text = json_file.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError) as error:
        said = "the file is empty" if isinstance(error, ValueError) and not text else error
        report.add("error", "annotation file cannot be read", f"{json_file}: {said}")
        return None
    lists = []
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            report.add("error", "not COCO's format", f"{json_file} has no list '{key}' of objects")
        elif not entries:
            report.add("error", "empty annotation file", f"{json_file} has an empty list '{key}'")
        else:
            lists.append(entries)
    return (lists[0], lists[1], lists[2]) if len(lists) == 3 else None


def _check_categories(report: Report, categories: list[Json]) -> dict[int, str]:
    """Class names by id."""
    names = {}
    for category in categories:
        if isinstance(category.get("id"), int) and "name" in category:
            names[category["id"]] = str(category["name"])
        else:
            report.add("error", "category without a number as id, or without name", str(category))
    _check_unique(report, "error", "duplicate category id", (c.get("id") for c in categories))
    _check_unique(report, "warning", "duplicate class name", (c.get("name") for c in categories))
    return names


def _check_unique(report: Report, severity: Any, kind: str, values: Iterable[Any]) -> None:
    for value, count in Counter(map(repr, values)).items():
        if count > 1:
            report.add(severity, kind, f"{value} ({count} times)")


def _check_image_entries(report: Report, images: list[Json]) -> dict[Any, Json]:
    """Image entries by id, those that can be used."""
    by_id = {}
    for image in images:
        lacking = [key for key in ("id", "file_name", "width", "height") if key not in image]
        if "id" in image and not isinstance(image["id"], int | str):
            lacking.append("id that is a number or a text")
        if lacking:
            report.add("error", "image entry without a key", f"{image}: no {', '.join(lacking)}")
        elif not all(_is_number(image[key]) and image[key] > 0 for key in ("width", "height")):
            report.add("error", "image size that is no positive number", _name(image))
        else:
            by_id[image["id"]] = image
    _check_unique(report, "error", "duplicate image id", (i.get("id") for i in images))
    _check_unique(report, "warning", "file listed twice", (i.get("file_name") for i in images))
    return by_id


def _check_annotations(
    report: Report, annotations: list[Json], images: dict[Any, Json], names: dict[int, str]
) -> None:
    _check_unique(report, "error", "duplicate annotation id", (a.get("id") for a in annotations))
    annotated, boxes, corners = set(), 0, 0
    for annotation in annotations:
        image = _get(images, annotation.get("image_id"))
        if image is None:
            place = f"annotation {annotation.get('id')}: image {annotation.get('image_id')}"
            report.add("warning", "annotation of an image that is not listed", place)
            continue
        annotated.add(image["id"])
        report.num_crowds += bool(annotation.get("iscrowd", 0))
        place = f"{_name(image)}, annotation {annotation.get('id')}"
        _check_class(report, annotation, place, names)
        _check_mask(report, annotation, place, image)
        if _check_box(report, annotation, place, image):
            boxes += 1
            corners += _looks_like_corners(annotation["bbox"], image)
    report.num_empty = len(images) - len(annotated)
    if boxes and corners >= _SUSPICIOUS_SHARE * boxes:
        report.add(
            "warning",
            "boxes look like x1, y1, x2, y2, but COCO's are x, y, width, height",
            f"{corners} of {boxes} boxes reach over the border and would fit as corners",
        )


def _check_class(report: Report, annotation: Json, place: str, names: dict[int, str]) -> None:
    category = annotation.get("category_id")
    name = _get(names, category)
    if name is None:
        report.add("error", "category id not in the list", f"{place}: category {category}")
    else:
        report.class_counts[name] += 1
    if annotation.get("ignore", 0):
        report.add("error", "'ignore' is set, which detectron2 refuses: use 'iscrowd'", place)


def _check_mask(report: Report, annotation: Json, place: str, image: Json) -> None:
    mask = annotation.get("segmentation")
    size = [image["height"], image["width"]]
    if isinstance(mask, dict) and list(mask.get("size", ())) != size:
        report.add("error", "mask of another size than the image", f"{place}: {mask.get('size')}")
    if isinstance(mask, list) and mask:
        valid = [p for p in mask if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0]
        if not valid:
            report.add("warning", "no valid polygon: detectron2 drops the object", place)


def _check_box(report: Report, annotation: Json, place: str, image: Json) -> bool:
    """Whether the box is four finite numbers with a positive area."""
    box = annotation.get("bbox")
    place = f"{place}: {box}"
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        report.add("error", "box that is not four finite numbers", place)
        return False
    x, y, width, height = box
    if width < 0 or height < 0:
        report.add("error", "box with negative width or height", place)
        return False
    if width == 0 or height == 0:
        report.add("warning", "box without area: dropped in training", place)
        return False
    right, bottom = x + width, y + height
    if right <= 0 or bottom <= 0 or x >= image["width"] or y >= image["height"]:
        report.add("warning", "box outside the image: dropped in training", place)
    elif min(x, y) < -1 or right > image["width"] + 1 or bottom > image["height"] + 1:
        report.add("warning", "box over the border of the image: clipped in training", place)
    return True


def _looks_like_corners(box: list[float], image: Json) -> bool:
    """Too big as x, y, width, height, but fitting the image as x1, y1, x2, y2."""
    x, y, width, height = box
    is_over = x + width > image["width"] + 1 or y + height > image["height"] + 1
    return is_over and x < width <= image["width"] + 1 and y < height <= image["height"] + 1


def _check_files(report: Report, images: list[Json], root: Path, decode: bool) -> None:
    listed = [image for image in images if "file_name" in image]

    def read(image: Json) -> ImageHeader | Exception:
        try:
            return read_header(str(root / image["file_name"]), decode=decode)
        except Exception as error:  # decoders raise what they please; it becomes a finding
            return error

    with ThreadPoolExecutor(8) as pool:
        headers = list(pool.map(read, listed))
    for image, header in zip(listed, headers, strict=True):
        _check_file(report, image, root, header)
    if listed and all(isinstance(header, FileNotFoundError) for header in headers):
        _suggest_folder(report, str(listed[0]["file_name"]), root)


def _suggest_folder(report: Report, file_name: str, root: Path) -> None:
    """All images are missing: say where the first one is, if it is near."""
    for folder in (root.parent, root / "images"):
        if (folder / file_name).is_file():
            report.add("note", "the images are in another folder", str(folder))


def _check_file(report: Report, image: Json, root: Path, header: ImageHeader | Exception) -> None:
    place = _name(image)
    if isinstance(header, FileNotFoundError):
        report.add("error", f"image file missing in {root}", place)
    elif isinstance(header, Exception):
        report.add("error", "image file cannot be read", f"{place}: {header}")
    else:
        _check_size(report, image, header)
        for kind in _peculiarities(header):
            report.add("note", kind, place)
        if header.mode == "F":
            report.add("error", "floating-point pixels: save with 8 or 16 bits", place)


def _check_size(report: Report, image: Json, header: ImageHeader) -> None:
    listed = (image.get("width"), image.get("height"))
    if listed == header.upright_size:
        return
    if listed == header.size:
        report.add(
            "warning",
            "size before the turn that EXIF asks for: the image is read without it",
            _name(image),
        )
        return
    report.add(
        "error",
        "image of another size than listed",
        f"{_name(image)}: listed {listed[0]} x {listed[1]}, file has "
        f"{header.upright_size[0]} x {header.upright_size[1]}",
    )


def _peculiarities(header: ImageHeader) -> list[str]:
    noted = {
        "grayscale image": header.mode in ("L", "1", "LA"),
        "image with transparency, which is ignored": header.mode in ("RGBA", "LA", "PA"),
        "palette image": header.mode in ("P", "PA"),
        "16-bit image, read as its high byte": header.mode.startswith("I"),
        "CMYK image": header.mode == "CMYK",
        "image turned by EXIF": header.orientation != 1,
    }
    return [kind for kind, applies in noted.items() if applies]


def _get(entries: dict[Any, Any], key: Any) -> Any:
    """The entry of an id from a file, where it may be anything."""
    return entries.get(key) if isinstance(key, int | str) else None


def _name(image: Json) -> str:
    return f"{image.get('file_name')} (image id {image.get('id')})"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
