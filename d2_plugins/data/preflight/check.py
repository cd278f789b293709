"""A look at a data set before hours are spent on it."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..images import ImageHeader, read_header
from .annotations import Json, check_annotations, check_unique, image_name, is_number
from .findings import Report

__all__ = ["check_dataset"]


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
    check_annotations(report, annotations, by_id, names)
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
    check_unique(report, "error", "duplicate category id", (c.get("id") for c in categories))
    check_unique(report, "warning", "duplicate class name", (c.get("name") for c in categories))
    return names


def _check_image_entries(report: Report, images: list[Json]) -> dict[Any, Json]:
    """Image entries by id, those that can be used."""
    by_id = {}
    for image in images:
        lacking = [key for key in ("id", "file_name", "width", "height") if key not in image]
        if "id" in image and not isinstance(image["id"], int | str):
            lacking.append("id that is a number or a text")
        if lacking:
            report.add("error", "image entry without a key", f"{image}: no {', '.join(lacking)}")
        elif not all(is_number(image[key]) and image[key] > 0 for key in ("width", "height")):
            report.add("error", "image size that is no positive number", image_name(image))
        else:
            by_id[image["id"]] = image
    check_unique(report, "error", "duplicate image id", (i.get("id") for i in images))
    check_unique(report, "warning", "file listed twice", (i.get("file_name") for i in images))
    return by_id


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
    place = image_name(image)
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
            image_name(image),
        )
        return
    report.add(
        "error",
        "image of another size than listed",
        f"{image_name(image)}: listed {listed[0]} x {listed[1]}, file has "
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
