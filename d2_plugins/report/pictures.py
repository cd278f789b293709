"""Predictions beside the ground truth, on the images that came out best and worst."""

import io
from collections import defaultdict
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

__all__ = ["Example", "box_quality", "choose_examples", "contact_sheet", "draw", "encode"]

# Detections below this score are neither drawn nor judged.
SCORE_THRESHOLD = 0.5

# Width and height that a drawn image fits into, in pixels.
_PANEL = (480, 400)
_FONT_SIZE = 14


@dataclass(frozen=True)
class Example:
    """An image to show.

    Attributes:
        item: detectron2's dataset dict.
        detections: of the image, with a score of at least ``SCORE_THRESHOLD``.
        quality: see :func:`box_quality`.
    """

    item: dict[str, Any]
    detections: list[dict[str, Any]]
    quality: float

    @property
    def caption(self) -> str:
        """Name of the image and its quality."""
        name = str(self.item["file_name"]).rsplit("/", 1)[-1]
        return f"{name}: box quality {100 * self.quality:.0f}"


def box_quality(
    gt_boxes: np.ndarray, gt_classes: np.ndarray, boxes: np.ndarray, classes: np.ndarray
) -> float:
    """Panoptic quality (Kirillov et al., arXiv 1801.00868, eq. 1) of the boxes of an image.

    Detections take, in the given order, the free box of their class with the highest IoU above
    0.5: (sum of these IoUs) / (matches + half the false positives + half the misses).

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
    predictions: Predictions, number: int = 3
) -> tuple[list[Example], list[Example]]:
    """The images with the best and the worst boxes.

    Args:
        predictions: on a data set.
        number: of images of either kind; fewer where the data set is small.

    Returns:
        The best, best first, and the worst, worst first; no image twice.

    Raises:
        MissingError: no image has an object or a detection.
    """
    by_image = defaultdict(list)
    for detection in sorted(predictions.detections, key=lambda d: -d["score"]):
        if detection["score"] >= SCORE_THRESHOLD:
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
    """The image with its ground truth, and with its detections.

    Raises:
        MissingError: the image cannot be read.
    """
    try:
        pixels = detection_utils.read_image(example.item["file_name"], "RGB")
    except OSError as error:
        raise MissingError(f"{example.item['file_name']} cannot be read") from error
    truth = _objects(example.item)
    gt = _overlay(
        pixels,
        [_xyxy(a["bbox"], a["bbox_mode"]) for a in truth],
        [a["category_id"] for a in truth],
        [predictions.class_names[a["category_id"]] for a in truth],
        [a.get("segmentation") for a in truth],
    )
    found = example.detections
    classes = [predictions.to_class[d["category_id"]] for d in found]
    detected = _overlay(
        pixels,
        [_xyxy(d["bbox"], BoxMode.XYWH_ABS) for d in found],
        classes,
        [
            f"{predictions.class_names[k]} {d['score']:.2f}"
            for k, d in zip(classes, found, strict=True)
        ],
        [d.get("segmentation") for d in found],
    )
    return gt, detected


class _Canvas(Visualizer):
    """A Visualizer that fills a panel, with text of the same size on small and large images."""

    def __init__(self, pixels: np.ndarray) -> None:
        height, width = pixels.shape[:2]
        scale = min(_PANEL[0] / width, _PANEL[1] / height)
        super().__init__(pixels, scale=scale)
        self._default_font_size = _FONT_SIZE / scale


def _overlay(
    pixels: np.ndarray,
    boxes: list[list[float]],
    classes: list[int],
    labels: list[str],
    masks: list[Any],
) -> Image.Image:
    canvas = _Canvas(pixels)
    if boxes:
        canvas.overlay_instances(
            boxes=np.array(boxes),
            labels=labels,
            masks=masks if all(masks) else None,
            assigned_colors=[to_rgb(COLOURS[k % len(COLOURS)]) for k in classes],
        )
    return Image.fromarray(canvas.output.get_image())


def contact_sheet(panels: list[tuple[str, Image.Image, Image.Image]]) -> Image.Image:
    """All panels on one sheet: ground truth left, detections right, captions above.

    Args:
        panels: caption, ground truth and detections of each image.
    """
    gap, line = 8, 26
    heights = [max(left.height, right.height) + line + gap for _, left, right in panels]
    sheet = Image.new("RGB", (2 * _PANEL[0] + 3 * gap, sum(heights) + gap), "white")
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(15), gap
    for (caption, left, right), height in zip(panels, heights, strict=True):
        pen.text((gap, top), f"{caption} (left: ground truth, right: detections)", "black", font)
        sheet.paste(left, (gap, top + line))
        sheet.paste(right, (_PANEL[0] + 2 * gap, top + line))
        top += height
    return sheet


def encode(image: Image.Image, kind: str) -> bytes:
    """``image`` as a "PNG" or "JPEG" file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return buffer.getvalue()
