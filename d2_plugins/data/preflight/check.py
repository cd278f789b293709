"""Pre-flight check of a COCO dataset, before training."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..coco_json import Json, read_coco
from ..images import ImageHeader, read_header
from .annotations import check_annotations, check_unique, image_name
from .findings import Report
from .schema import CATEGORY, IMAGE, check_fields, shown

__all__ = ["check_categories", "check_content", "check_dataset"]

# Beyond this, resizing to the usual sizes leaves less than one pixel of the shorter side.
_MAX_ASPECT_RATIO = 100


def check_dataset(
    json_file: str | Path,
    image_root: str | Path,
    *,
    decode: bool = False,
    needs_masks: bool = False,
) -> Report:
    """Check a dataset in COCO format.

    Args:
        json_file: annotations in COCO's instances format.
        image_root: folder of the images.
        decode: decode every image instead of reading only headers: finds truncated files, and
            takes about as long as loading them for one epoch.
        needs_masks: True if masks will be trained or evaluated.

    Returns:
        Report with all findings; problems of the data are never raised.
    """
    report = Report(title=str(json_file))
    try:
        content = read_coco(json_file)
    except (UsageError, OSError) as error:
        report.add("error", "not a COCO JSON", str(error))
        return report
    return check_content(report, content, image_root, decode=decode, needs_masks=needs_masks)


def check_content(
    report: Report,
    content: Json,
    image_root: str | Path,
    *,
    decode: bool = False,
    needs_masks: bool = False,
) -> Report:
    """Check the content of a COCO JSON that has been read already.

    Args:
        report: empty report that receives the findings.
        content: from :func:`~d2_plugins.data.coco_json.read_coco`.
        image_root: as in :func:`check_dataset`.
        decode: as there.
        needs_masks: as there.

    Returns:
        The report.
    """
    images, annotations = content["images"], content["annotations"]
    report.num_images, report.num_annotations = len(images), len(annotations)
    names = check_categories(report, content["categories"])
    report.class_counts.update(dict.fromkeys(names.values(), 0))
    by_id = _check_image_entries(report, images)
    check_annotations(report, annotations, by_id, names, needs_masks=needs_masks)
    _check_files(report, [i for i in by_id.values() if i], Path(image_root), decode)
    return report


def check_categories(report: Report, categories: list[Json]) -> dict[int, str]:
    """Check the categories of a COCO JSON.

    Args:
        report: report that receives the findings.
        categories: entries of the JSON.

    Returns:
        Class names by id, of the valid entries.
    """
    valid = [c for c in categories if check_fields(report, CATEGORY, c, partial(_category, c))]
    check_unique(report, "error", "duplicate category id", categories, "id")
    check_unique(report, "warning", "duplicate class name", categories, "name")
    return {category["id"]: category["name"] for category in valid}


def _category(category: Json) -> str:
    return f"category {shown(category.get('id'))}"


def _check_image_entries(report: Report, images: list[Json]) -> dict[Any, Json | None]:
    """Check the images; return the entries by id, None for an entry with an invalid field."""
    by_id: dict[Any, Json | None] = {}
    for image in images:
        valid = check_fields(report, IMAGE, image, partial(image_name, image))
        if type(image.get("id")) is int:
            by_id[image["id"]] = image if valid else None
    check_unique(report, "error", "duplicate image id", images, "id")
    check_unique(report, "warning", "file listed twice", images, "file_name")
    return by_id


def _check_files(report: Report, images: list[Json], root: Path, decode: bool) -> None:
    def read(image: Json) -> ImageHeader | Exception:
        try:
            file_name = os.path.join(root, image["file_name"])  # as detectron2 does
            header = read_header(file_name, decode=decode)
            # Only decoding shows if the values of a 32-bit image fit into 16 bits.
            return read_header(file_name, decode=True) if header.mode == "I" else header
        except Exception as error:  # Pillow's decoders can raise any exception
            return error

    with ThreadPoolExecutor(8) as pool:
        headers = list(pool.map(read, images))
    for image, header in zip(images, headers, strict=True):
        _check_file(report, image, root, header)
    if images and all(isinstance(header, FileNotFoundError) for header in headers):
        _suggest_folder(report, images[0]["file_name"], root)


def _suggest_folder(report: Report, file_name: str, root: Path) -> None:
    """Name the folder of the first image, if all are missing and it is near."""
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
    place = image_name(image)
    width, height = listed = (image["width"], image["height"])
    if max(listed) > _MAX_ASPECT_RATIO * min(listed):
        kind = f"side more than {_MAX_ASPECT_RATIO} times the other one: resizing would lose it"
        report.add("error", kind, f"{place}: {width} x {height}")
    if listed == header.upright_size:
        return
    if listed == header.size:
        kind = "size before the rotation that EXIF asks for: the image is read without it"
        report.add("warning", kind, place)
        return
    found = "file has {} x {}".format(*header.upright_size)
    kind = "image of another size than listed"
    report.add("error", kind, f"{place}: listed {width} x {height}, {found}")


def _peculiarities(header: ImageHeader) -> list[str]:
    noted = {
        "grayscale image": header.mode in ("L", "1", "LA"),
        "image with transparency, which is ignored": header.mode in ("RGBA", "LA", "PA"),
        "palette image": header.mode in ("P", "PA"),
        "16-bit image, read as its high byte": header.mode.startswith("I"),
        "CMYK image": header.mode == "CMYK",
        "image rotated by EXIF": header.orientation != 1,
    }
    return [kind for kind, applies in noted.items() if applies]
