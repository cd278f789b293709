"""Schema of COCO instances JSON: the fields that training and evaluation read.

A table of our own instead of a library: all faults are collected and named by image and
annotation, 1.5 million annotations take seconds, and a message says what is allowed.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..coco_json import Json
from .findings import Report

__all__ = ["ANNOTATION", "CATEGORY", "IMAGE", "Field", "check_fields", "shown"]

_MISSING = object()
_NUMBER_TYPES = {int, float}  # not bool, which is a subclass of int
# Coordinates beyond this are mistakes, and would overflow in arithmetic.
_MAX_COORDINATE = 1e9
# COCO's evaluation ignores objects with a larger area.
_MAX_AREA = 1e10
_MAX_SIDE = 1_000_000
# Control characters, line separators and halves of surrogate pairs break logs and file names.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# pycocotools writes outside its memory unless the last character ends a number.
_RLE = re.compile("(?:[P-o]{0,6}[0-O])+")


@dataclass(frozen=True)
class Field:
    """Allowed values of one field.

    Attributes:
        accepts: function that returns True for an allowed value.
        allowed: description of the allowed values.
        default: value of a missing field, for optional ones.
    """

    accepts: Callable[[Any], bool]
    allowed: str
    default: Any = _MISSING


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _are_coordinates(value: Any) -> bool:
    if not isinstance(value, list) or not set(map(type, value)) <= _NUMBER_TYPES:
        return False
    # A NaN is in the sum, but may hide from min and max. Huge integers never reach the sum.
    in_range = not value or (-_MAX_COORDINATE <= min(value) and max(value) <= _MAX_COORDINATE)
    return in_range and not math.isnan(sum(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _UNPRINTABLE.search(value)


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= _MAX_SIDE


def _is_box(value: Any) -> bool:
    return _are_coordinates(value) and len(value) == 4


def _is_area(value: Any) -> bool:
    return type(value) in _NUMBER_TYPES and 0 <= value <= _MAX_AREA


def _is_flag(value: Any) -> bool:
    return type(value) in (int, bool) and value in (0, 1)


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


def _is_mask(value: Any) -> bool:
    if isinstance(value, dict):
        return not value or (_is_size(value.get("size")) and _are_counts(value.get("counts")))
    return value is None or (isinstance(value, list) and all(map(_is_polygon, value)))


def _is_polygon(value: Any) -> bool:
    return _are_coordinates(value) and len(value) >= 4 and len(value) % 2 == 0


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_side, value))


def _are_counts(value: Any) -> bool:
    if isinstance(value, str):
        return _RLE.fullmatch(value) is not None
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 32 for v in value)


def _are_keypoints(value: Any) -> bool:
    return value is None or (_are_coordinates(value) and len(value) % 3 == 0)


IMAGE: Mapping[str, Field] = {
    "id": Field(_is_integer, "an integer"),
    "file_name": Field(_is_text, "a text without control characters"),
    "width": Field(_is_side, "a positive integer"),
    "height": Field(_is_side, "a positive integer"),
}

CATEGORY: Mapping[str, Field] = {
    "id": Field(_is_integer, "an integer"),
    "name": Field(_is_text, "a text without control characters"),
}

ANNOTATION: Mapping[str, Field] = {
    "id": Field(_is_integer, "an integer"),
    "image_id": Field(_is_integer, "an integer"),
    "category_id": Field(_is_integer, "an integer"),
    "bbox": Field(_is_box, "four numbers: x, y, width and height"),
    "area": Field(_is_area, "a number of square pixels, not negative"),
    "iscrowd": Field(_is_flag, "0 or 1"),
    "ignore": Field(_is_zero, "0, because detectron2 refuses others; use iscrowd", 0),
    "segmentation": Field(
        _is_mask, "a list of polygons x1, y1, x2, y2, ..., or an RLE with size and counts", None
    ),
    "keypoints": Field(_are_keypoints, "a list of numbers x1, y1, v1, ...", None),
}


def check_fields(
    report: Report, schema: Mapping[str, Field], entry: Json, place: Callable[[], str]
) -> bool:
    """Check the fields of one entry and add an error for each that is missing or invalid.

    Args:
        report: report that receives the findings.
        schema: the fields to check; other fields of the entry may hold anything.
        entry: image, annotation or category of the JSON.
        place: function that names the entry, for the message.

    Returns:
        True if all fields are valid.
    """
    valid = True
    for key, field in schema.items():
        value = entry.get(key, field.default)
        if not field.accepts(value):
            found = "is missing" if value is _MISSING else f"is {shown(value)}"
            kind = f"invalid '{key}'; allowed: {field.allowed}"
            report.add("error", kind, f"{place()}: {key} {found}")
            valid = False
    return valid


def shown(value: Any) -> str:
    """Show a value of a JSON in at most 80 characters."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
