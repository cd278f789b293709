"""Pictures of ground truth and detections, on the images with the best and the worst boxes."""

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data import detection_utils
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from detectron2.utils.visualizer import Visualizer
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFont

from .curves import COLOURS
from .run import MissingError, Predictions

__all__ = [
    "SCORE_THRESHOLD",
    "Example",
    "box_quality",
    "choose_examples",
    "contact_sheet",
    "draw",
    "encode",
    "place_labels",
    "score_threshold",
]

# Detections below this score are neither drawn nor judged, unless a lower one suits them better.
SCORE_THRESHOLD = 0.5

# Width and height that a drawn image fits into, in pixels.
_PANEL = (720, 600)
_FONT_SIZE = 17

# XYXY in pixels.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Example:
    """An image to show.

    Attributes:
        item: detectron2's dataset dict.
        detections: detections of the image with a score of at least the threshold.
        quality: how well the boxes match, see :func:`box_quality`.
    """

    item: dict[str, Any]
    detections: list[dict[str, Any]]
    quality: float

    @property
    def caption(self) -> str:
        """Name of the image and its quality."""
        name = str(self.item["file_name"]).rsplit("/", 1)[-1]
        return f"{name}: box quality {100 * self.quality:.0f} of 100"


def score_threshold(predictions: Predictions, recommended: float) -> float:
    """Return the lowest score of the detections to draw.

    Args:
        predictions: predictions on a dataset.
        recommended: the threshold with the highest F1 score; NaN if no detection is correct.

    Returns:
        The lower one of ``SCORE_THRESHOLD`` and the recommended threshold; half of the highest
        score if there is neither a recommendation nor a score above ``SCORE_THRESHOLD``.
    """
    if not math.isnan(recommended):
        return min(SCORE_THRESHOLD, recommended)
    highest = max((d["score"] for d in predictions.detections), default=1.0)
    return SCORE_THRESHOLD if highest >= SCORE_THRESHOLD else highest / 2


def box_quality(
    gt_boxes: np.ndarray, gt_classes: np.ndarray, boxes: np.ndarray, classes: np.ndarray
) -> float:
    """Compute the panoptic quality (Kirillov et al., arXiv 1801.00868, eq. 1) of an image's boxes.

    Detections take, in the given order, the free box of their class with the highest IoU above
    0.5. The quality is (sum of these IoUs) / (matches + half the false positives + half the
    misses).

    Args:
        gt_boxes: (G, 4) XYXY.
        gt_classes: (G,).
        boxes: (R, 4) detections, best first.
        classes: (R,).

    Returns:
        0 to 1; NaN for an image without objects and detections.
    """
    if not len(gt_boxes) and not len(boxes):
        return float("nan")
    ious = pairwise_iou(Boxes(torch.as_tensor(boxes)), Boxes(torch.as_tensor(gt_boxes))).numpy()
    ious = np.where(classes[:, None] == gt_classes[None], ious, 0.0)
    matched = []
    for row in range(len(boxes) if len(gt_boxes) else 0):
        best = int(ious[row].argmax())
        if ious[row, best] > 0.5:
            matched.append(float(ious[row, best]))
            ious[:, best] = 0.0
    return sum(matched) / (0.5 * (len(boxes) + len(gt_boxes)))


def choose_examples(
    predictions: Predictions, number: int = 3, *, threshold: float = SCORE_THRESHOLD
) -> tuple[list[Example], list[Example]]:
    """Choose the images with the best and the worst boxes.

    Args:
        predictions: predictions on a dataset.
        number: number of images of either kind; fewer are returned for a small dataset.
        threshold: lowest score of a detection that counts.

    Returns:
        The best, best first, and the worst, worst first; no image twice.

    Raises:
        MissingError: no image has an object or a detection.
    """
    by_image = defaultdict(list)
    for detection in sorted(predictions.detections, key=lambda d: -d["score"]):
        if detection["score"] >= threshold:
            by_image[detection["image_id"]].append(detection)
    examples = [_judge(item, by_image[item["image_id"]], predictions) for item in predictions.items]
    ranked = sorted((e for e in examples if not np.isnan(e.quality)), key=lambda e: -e.quality)
    if not ranked:
        raise MissingError("no image has an object or a detection")
    number = min(number, (len(ranked) + 1) // 2)
    worst = ranked[max(number, len(ranked) - number) :]
    return ranked[:number], worst[::-1]


def _judge(
    item: dict[str, Any], detections: list[dict[str, Any]], predictions: Predictions
) -> Example:
    truth = _objects(item)
    quality = box_quality(
        np.array([_xyxy(a["bbox"], a["bbox_mode"]) for a in truth]).reshape(-1, 4),
        np.array([a["category_id"] for a in truth], dtype=int),
        np.array([_xyxy(d["bbox"], BoxMode.XYWH_ABS) for d in detections]).reshape(-1, 4),
        np.array([predictions.to_class[d["category_id"]] for d in detections], dtype=int),
    )
    return Example(item, detections, quality)


def _objects(item: dict[str, Any]) -> list[dict[str, Any]]:
    return [a for a in item.get("annotations", ()) if not a.get("iscrowd", 0)]


def _xyxy(box: Any, mode: BoxMode) -> list[float]:
    return BoxMode.convert(list(box), mode, BoxMode.XYXY_ABS)


def draw(example: Example, predictions: Predictions) -> tuple[Image.Image, Image.Image]:
    """Draw the image with its ground truth, and with its detections.

    Masks are drawn only if the detections have masks too, so that the same object looks the same
    in both pictures.

    Raises:
        MissingError: the image cannot be read.
    """
    try:
        pixels = detection_utils.read_image(example.item["file_name"], "RGB")
    except OSError as error:
        raise MissingError(f"{example.item['file_name']} cannot be read") from error
    with_masks = any(d.get("segmentation") for d in predictions.detections)
    truth, found = _objects(example.item), example.detections
    names = predictions.class_names
    classes = [predictions.to_class[d["category_id"]] for d in found]
    gt = _overlay(
        pixels,
        [_xyxy(a["bbox"], a["bbox_mode"]) for a in truth],
        [a["category_id"] for a in truth],
        [names[a["category_id"]] for a in truth],
        [a.get("segmentation") for a in truth] if with_masks else [],
    )
    detected = _overlay(
        pixels,
        [_xyxy(d["bbox"], BoxMode.XYWH_ABS) for d in found],
        classes,
        [f"{names[k]} {d['score']:.2f}" for k, d in zip(classes, found, strict=True)],
        [d.get("segmentation") for d in found] if with_masks else [],
    )
    return gt, detected


def _overlay(
    pixels: np.ndarray,
    boxes: list[list[float]],
    classes: list[int],
    labels: list[str],
    masks: list[Any],
) -> Image.Image:
    """Draw boxes, labels and, if each box has one, masks."""
    height, width = pixels.shape[:2]
    scale = min(_PANEL[0] / width, _PANEL[1] / height)
    colours = [COLOURS[k % len(COLOURS)] for k in classes]
    canvas = Visualizer(pixels, scale=scale)
    if boxes:
        canvas.overlay_instances(
            boxes=np.array(boxes),
            masks=masks if masks and all(masks) else None,
            assigned_colors=[to_rgb(colour) for colour in colours],
        )
    picture = Image.fromarray(canvas.output.get_image())
    _draw_labels(picture, [_scaled(box, scale) for box in boxes], labels, colours)
    return picture


def _scaled(box: Sequence[float], scale: float) -> Box:
    x0, y0, x1, y1 = (scale * x for x in box)
    return x0, y0, x1, y1


def _draw_labels(
    picture: Image.Image, boxes: list[Box], labels: list[str], colours: list[str]
) -> None:
    """Write a label on a background of its colour next to each box."""
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT_SIZE)
    margin = 2
    extents = [pen.textbbox((margin, margin), label, font) for label in labels]
    sizes = [(right + margin, bottom + margin) for _, _, right, bottom in extents]
    places = place_labels(boxes, sizes, picture.size)
    for (x, y), (width, height), label, colour in zip(places, sizes, labels, colours, strict=True):
        pen.rectangle((x, y, x + width, y + height), fill=colour)
        # Luma of ITU-R BT.601: dark text on light colours.
        is_light = np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) > 0.55
        pen.text((x + margin, y + margin), label, "black" if is_light else "white", font)


def place_labels(
    boxes: Sequence[Box], sizes: Sequence[tuple[float, float]], limits: tuple[int, int]
) -> list[tuple[float, float]]:
    """Choose places for labels so that they do not hide each other.

    A label goes above its box, below it, or inside its upper or lower edge, at the left or at the
    right: to the first of these places that is free, or else to the one that overlaps least.

    Args:
        boxes: box of each label.
        sizes: width and height of each label.
        limits: width and height of the picture.

    Returns:
        The upper left corner of each label, within the picture.
    """
    taken: list[Box] = []
    for (x0, y0, x1, y1), (width, height) in zip(boxes, sizes, strict=True):
        candidates = []
        for x in (x0, x1 - width):
            for y in (y0 - height, y1, y0, y1 - height):
                left = min(max(x, 0), max(0, limits[0] - width))
                top = min(max(y, 0), max(0, limits[1] - height))
                candidates.append((left, top, left + width, top + height))
        taken.append(min(candidates, key=lambda c: sum(_overlap(c, other) for other in taken)))
    return [(x, y) for x, y, _, _ in taken]


def _overlap(a: Box, b: Box) -> float:
    """Return the common area of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


def contact_sheet(panels: list[tuple[str, Image.Image, Image.Image]]) -> Image.Image:
    """Put all panels on one sheet: ground truth left, detections right, captions above.

    Args:
        panels: caption, ground truth and detections of each image.

    Returns:
        The sheet, as wide as the widest pair of pictures.
    """
    gap, line = 8, 30
    column = max(max(left.width, right.width) for _, left, right in panels)
    heights = [max(left.height, right.height) + line + gap for _, left, right in panels]
    sheet = Image.new("RGB", (2 * column + 3 * gap, sum(heights) + gap), "white")
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE), gap
    for (caption, left, right), height in zip(panels, heights, strict=True):
        pen.text((gap, top), f"{caption} (left: ground truth, right: detections)", "black", font)
        sheet.paste(left, (gap, top + line))
        sheet.paste(right, (column + 2 * gap, top + line))
        top += height
    return sheet


def encode(image: Image.Image, kind: str) -> bytes:
    """Return ``image`` as the content of a "PNG" or "JPEG" file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return buffer.getvalue()
