"""Checks of COCO annotations, one by one and together."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..coco_json import Json
from .findings import Report, Severity
from .masks import check_mask
from .schema import ANNOTATION, check_fields, shown

__all__ = ["check_annotations", "check_unique", "image_name"]

# A function that names an annotation and its image; called only for a finding.
_Place = Callable[[], str]

# Warn from this fraction of boxes on that are plausible only as corners.
_SUSPICIOUS_FRACTION = 0.2


def check_annotations(
    report: Report,
    annotations: list[Json],
    images: Mapping[Any, Json | None],
    names: Mapping[int, str],
    *,
    needs_masks: bool,
) -> None:
    """Check all annotations, and count crowds, classes and images without annotations.

    Args:
        report: report that receives the findings and the counts.
        annotations: annotations of the JSON.
        images: image entries by id; None for those with invalid fields.
        names: class names by category id.
        needs_masks: True if masks will be trained or evaluated.
    """
    check_unique(report, "error", "duplicate annotation id", annotations, "id")
    annotated: set[int] = set()
    valid: list[Json] = []
    corners = 0
    for annotation in annotations:
        image = _image_of(annotation, images)
        place = partial(_place, annotation, image)
        if not check_fields(report, ANNOTATION, annotation, place):
            continue
        if image is None:
            if annotation["image_id"] not in images:
                report.add("warning", "annotation of an image that is not listed", place())
            continue
        annotated.add(image["id"])
        _check_class(report, annotation, place, names)
        _check_box(report, annotation["bbox"], place, image)
        corners += _looks_like_corners(annotation["bbox"], image)
        if check_mask(report, annotation.get("segmentation"), place, image, needs_masks):
            valid.append(annotation)
    report.num_crowds = sum(annotation["iscrowd"] for annotation in valid)
    report.num_empty = len(images) - len(annotated)
    _check_together(report, valid, corners, needs_masks)


def _image_of(annotation: Json, images: Mapping[Any, Json | None]) -> Json | None:
    image_id = annotation.get("image_id")
    return images.get(image_id) if type(image_id) is int else None


def _check_class(report: Report, annotation: Json, place: _Place, names: Mapping[int, str]) -> None:
    name = names.get(annotation["category_id"])
    if name is None:
        category = f"{place()}: category {annotation['category_id']}"
        report.add("error", "category id not in the list", category)
    else:
        report.class_counts[name] += 1


def _check_box(report: Report, box: list[float], place: _Place, image: Json) -> None:
    x, y, width, height = box
    right, bottom = x + width, y + height
    if width < 0 or height < 0:
        report.add("error", "box with negative width or height", f"{place()}: {box}")
    elif width == 0 or height == 0:
        report.add("warning", "box without area: dropped in training", f"{place()}: {box}")
    elif right <= 0 or bottom <= 0 or x >= image["width"] or y >= image["height"]:
        report.add("warning", "box outside the image: dropped in training", f"{place()}: {box}")
    elif min(x, y) < -1 or right > image["width"] + 1 or bottom > image["height"] + 1:
        kind = "box over the border of the image: clipped in training"
        report.add("warning", kind, f"{place()}: {box}")


def _looks_like_corners(box: list[float], image: Json) -> bool:
    """Return True for a box too large as x, y, width, height, but possible as x1, y1, x2, y2."""
    x, y, width, height = box
    is_over = x + width > image["width"] + 1 or y + height > image["height"] + 1
    return is_over and x < width <= image["width"] + 1 and y < height <= image["height"] + 1


def _check_together(report: Report, valid: list[Json], corners: int, needs_masks: bool) -> None:
    """Check what shows only over all annotations: objects, corners and missing masks."""
    if report.ok and report.num_crowds == len(valid):
        kind = "no annotation is an object to train on or to find (crowds are not)"
        report.add("error", kind, f"{report.num_annotations} annotations")
    if corners and corners >= _SUSPICIOUS_FRACTION * len(valid):
        report.add(
            "warning",
            "boxes look like x1, y1, x2, y2, but COCO's are x, y, width, height",
            f"{corners} of {len(valid)} boxes reach over the border and would fit as corners",
        )
    bare = [a for a in valid if not a.get("segmentation") and (needs_masks or not a["iscrowd"])]
    if needs_masks or len(bare) < len(valid) - report.num_crowds:
        for annotation in bare:
            kind = "no mask, though others have one: MODEL.MASK_ON fails"
            report.add("error" if needs_masks else "warning", kind, _place(annotation, None))


def check_unique(
    report: Report, severity: Severity, kind: str, entries: list[Json], key: str
) -> None:
    """Add a finding for each value of ``key`` that occurs in more than one entry."""
    values = (entry.get(key) for entry in entries)
    for value, count in Counter(v for v in values if isinstance(v, int | str)).items():
        if count > 1:
            report.add(severity, kind, f"{value!r} ({count} times)")


def _place(annotation: Json, image: Json | None) -> str:
    number = f"annotation {shown(annotation.get('id'))}"
    if image is None:
        return f"{number} of image {shown(annotation.get('image_id'))}"
    return f"{image_name(image)}, {number}"


def image_name(image: Json) -> str:
    """Return file name and id of an image entry."""
    name = image.get("file_name")
    return f"{name if isinstance(name, str) else shown(name)} (image id {shown(image.get('id'))})"
