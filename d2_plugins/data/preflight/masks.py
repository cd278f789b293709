"""Checks of polygons and RLE masks.

pycocotools trusts its input: run lengths that do not add up to the image's area are read from, and
written to, memory that is not theirs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..coco_json import Json
from .findings import Report

__all__ = ["check_mask", "run_lengths"]


def check_mask(
    report: Report, mask: Any, place: Callable[[], str], image: Json, needs_masks: bool
) -> bool:
    """Check the ``segmentation`` of an annotation.

    Args:
        report: report that receives the findings.
        mask: polygons or RLE that follow the schema; empty or None for no mask.
        place: function that names the annotation and its image.
        image: image entry with valid fields.
        needs_masks: True if masks will be trained or evaluated.

    Returns:
        False if detectron2 drops the annotation because of its mask.
    """
    if isinstance(mask, dict) and mask:
        _check_rle(report, mask, place, [image["height"], image["width"]])
    elif mask:
        short = [polygon for polygon in mask if len(polygon) < 6]
        if short:
            kind = "polygon with fewer than three points: dropped in training"
            report.add("error" if needs_masks else "warning", kind, f"{place()}: {short[0]}")
        if _is_far(mask, 2 * max(image["width"], image["height"])):
            report.add("error", "polygon far outside the image", place())
        return len(short) < len(mask)
    return True


def _check_rle(report: Report, mask: Json, place: Callable[[], str], size: list[int]) -> None:
    if mask["size"] != size:
        report.add("error", "mask of another size than the image", f"{place()}: {mask['size']}")
        return
    lengths = run_lengths(mask["counts"])
    if (lengths < 0).any() or lengths.sum() != size[0] * size[1]:
        kind = "RLE counts that do not add up to the area of the image"
        report.add("error", kind, f"{place()}: {lengths.sum()} of {size[0] * size[1]} pixels")


def _is_far(polygons: list[list[float]], distance: float) -> bool:
    """Return True if a coordinate is so far away that drawing the polygon would take long."""
    return any(max(polygon) > distance or min(polygon) < -distance for polygon in polygons)


def run_lengths(counts: str | list[int]) -> npt.NDArray[np.int64]:
    """Decode the counts of an RLE.

    In text, a number is a group of characters with 5 bits each, least significant first; from the
    fourth number on it is the difference to the number two places before (COCO's mask API,
    ``rleToString``).

    Args:
        counts: list of numbers, or text in which every group is complete.

    Returns:
        Lengths of the runs; negative numbers are kept as they are.
    """
    if isinstance(counts, list):
        return np.array(counts, np.int64)
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 0x20) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, ends - starts + 1))
    numbers = np.add.reduceat((codes & 0x1F) << shifts, starts)
    is_negative = (codes[ends] & 0x10) != 0
    numbers -= np.where(is_negative, np.int64(1) << (5 * (ends - starts + 1)), 0)
    lengths = numbers.copy()
    lengths[1::2] = np.cumsum(numbers[1::2])
    lengths[2::2] = np.cumsum(numbers[2::2])
    return lengths
