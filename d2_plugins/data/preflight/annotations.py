"""Checks of the annotations of a COCO json, one by one and together."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .findings import Report, Severity

__all__ = ["Json", "check_annotations", "check_unique", "image_name", "is_number"]

Json = dict[str, Any]

# From this share of boxes that are plausible only as corners on, say so.
_SUSPICIOUS_SHARE = 0.2


def check_annotations(
    report: Report, annotations: list[Json], images: dict[Any, Json], names: dict[int, str]
) -> None:
    """Check all annotations, and count crowds, classes and images without annotations.

    Args:
        report: gets the findings and the counts.
        annotations: of the json.
        images: entries of the json by id.
        names: class names by category id.
    """
    check_unique(report, "error", "duplicate annotation id", (a.get("id") for a in annotations))
    annotated, boxes, corners = set(), 0, 0
    for annotation in annotations:
        _check_keys(report, annotation)
        image = _get(images, annotation.get("image_id"))
        if image is None:
            kind = "annotation of an image that is not listed"
            report.add("warning", kind, _ids(annotation))
            continue
        annotated.add(image["id"])
        report.num_crowds += bool(annotation.get("iscrowd", 0))
        place = f"{image_name(image)}, annotation {annotation.get('id')}"
        _check_class(report, annotation, place, names)
        _check_mask(report, annotation, place, image)
        if _check_box(report, annotation, place, image):
            boxes += 1
            corners += _looks_like_corners(annotation["bbox"], image)
    report.num_empty = len(images) - len(annotated)
    _check_lacking_masks(report, annotations)
    if boxes and corners >= _SUSPICIOUS_SHARE * boxes:
        report.add(
            "warning",
            "boxes look like x1, y1, x2, y2, but COCO's are x, y, width, height",
            f"{corners} of {boxes} boxes reach over the border and would fit as corners",
        )


def _check_keys(report: Report, annotation: Json) -> None:
    lacking = [key for key in ("id", "image_id", "area", "iscrowd") if key not in annotation]
    if lacking:
        kind = "annotation without a key (COCO's evaluation needs area and iscrowd)"
        report.add("error", kind, f"{_ids(annotation)}: no {', '.join(lacking)}")


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
    if isinstance(mask, dict) and mask.get("size") != size:
        report.add("error", "mask of another size than the image", f"{place}: {mask.get('size')}")
    if isinstance(mask, list) and mask:
        valid = [p for p in mask if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0]
        if not valid:
            report.add("warning", "no valid polygon: detectron2 drops the object", place)


def _check_lacking_masks(report: Report, annotations: list[Json]) -> None:
    objects = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
    bare = [annotation for annotation in objects if not annotation.get("segmentation")]
    for annotation in bare if len(bare) < len(objects) else ():
        kind = "no mask, though others have one: MODEL.MASK_ON fails"
        report.add("warning", kind, _ids(annotation))


def _check_box(report: Report, annotation: Json, place: str, image: Json) -> bool:
    """Whether the box is four finite numbers with a positive area."""
    box = annotation.get("bbox")
    place = f"{place}: {box}"
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(v) for v in box):
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


def check_unique(report: Report, severity: Severity, kind: str, values: Iterable[Any]) -> None:
    """Add a finding for each value that comes more than once."""
    for value, count in Counter(map(repr, values)).items():
        if count > 1:
            report.add(severity, kind, f"{value} ({count} times)")


def _get(entries: dict[Any, Any], key: Any) -> Any:
    """The entry of an id from a file, where it may be anything."""
    return entries.get(key) if isinstance(key, int | str) else None


def _ids(annotation: Json) -> str:
    return f"annotation {annotation.get('id')} of image {annotation.get('image_id')}"


def image_name(image: Json) -> str:
    """File and id of an image entry."""
    return f"{image.get('file_name')} (image id {image.get('id')})"


def is_number(value: Any) -> bool:
    """Whether a value of a json is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
