"""Precision and recall at score thresholds, and the confusion matrix of the classes.

A detection is correct if its box has an IoU of at least 0.5 with an object of its class that no
detection with a higher score has taken; these are COCO's rules for AP50. Detections on crowd
regions count neither way.

Shape shorthand: R detections, G objects of an image, K classes, T thresholds.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from .run import Predictions

__all__ = ["THRESHOLDS", "Matches", "confusion_matrix", "match_detections"]

# Candidates for a score threshold: 0.01, 0.02, ..., 0.99.
THRESHOLDS = np.arange(1, 100) / 100
_MIN_IOU = 0.5


@dataclass(frozen=True)
class Matches:
    """All detections on a dataset with the verdict on each.

    Attributes:
        classes: (R,) class indices.
        scores: (R,) in 0..1.
        is_correct: (R,) bool.
        num_objects: (K,) objects per class, crowds excluded.
    """

    classes: np.ndarray
    scores: np.ndarray
    is_correct: np.ndarray
    num_objects: np.ndarray

    def counts(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Count the detections with a score of at least ``threshold``.

        Returns:
            Correct ones and all, each (K,).
        """
        kept = self.scores >= threshold
        num_classes = len(self.num_objects)
        correct = np.bincount(self.classes[kept & self.is_correct], minlength=num_classes)
        return correct, np.bincount(self.classes[kept], minlength=num_classes)

    def best_thresholds(self) -> tuple[np.ndarray, float]:
        """Return the thresholds of ``THRESHOLDS`` with the highest F1 score.

        F1 = 2 * correct / (detections + objects). Of several thresholds with the same F1 score,
        the highest is returned.

        Returns:
            The threshold of each class (K,), NaN for classes without a correct detection; and the
            threshold of all classes together, NaN if no detection is correct.
        """
        at = [self.counts(threshold) for threshold in THRESHOLDS]
        correct, found = (np.stack(counts) for counts in zip(*at, strict=True))  # (T, K)
        each = [
            _best(correct[:, k], found[:, k], number) for k, number in enumerate(self.num_objects)
        ]
        return np.array(each), _best(correct.sum(1), found.sum(1), self.num_objects.sum())


def _best(correct: np.ndarray, found: np.ndarray, num_objects: int) -> float:
    """Return the threshold for counts (T,) of correct and of all detections."""
    if not correct.any():
        return float("nan")
    f1 = 2 * correct / (found + num_objects)
    return float(THRESHOLDS[np.flatnonzero(f1 == f1.max())[-1]])


def match_detections(predictions: Predictions) -> Matches:
    """Match the boxes of all detections with the objects of their image and class."""
    classes, scores, verdicts = [], [], []
    objects = _by_key(predictions.ground_truth.anns.values())
    num_objects = np.zeros(len(predictions.class_names), dtype=int)
    for annotations in objects.values():
        for annotation in annotations:
            if not annotation.get("iscrowd", 0):
                num_objects[predictions.to_class[annotation["category_id"]]] += 1
    for key, detections in _by_key(predictions.detections).items():
        detections.sort(key=lambda d: -d["score"])
        ious, crowd = _ious(detections, objects.get(key, []))
        for detection, verdict in zip(detections, _verdicts(ious, crowd), strict=True):
            if verdict is not None:
                classes.append(predictions.to_class[detection["category_id"]])
                scores.append(detection["score"])
                verdicts.append(verdict)
    return Matches(
        np.array(classes, dtype=int), np.array(scores), np.array(verdicts, dtype=bool), num_objects
    )


def _by_key(entries: Any) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Group annotations or detections by image id and category id."""
    groups = defaultdict(list)
    for entry in entries:
        groups[entry["image_id"], entry["category_id"]].append(entry)
    return groups


def _ious(
    detections: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the IoU (R, G), the share of the detection for crowds, and which are crowds (G,)."""
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool)
    if not detections or not annotations:
        return np.zeros((len(detections), len(annotations))), crowd
    boxes = [np.array([x["bbox"] for x in xs], dtype=float) for xs in (detections, annotations)]
    return mask_util.iou(*boxes, crowd.astype(int).tolist()), crowd


def _verdicts(ious: np.ndarray, crowd: np.ndarray) -> list[bool | None]:
    """Return for each row, best score first: correct, wrong, or None on a crowd region."""
    free = ious.copy()
    free[:, crowd] = 0
    verdicts: list[bool | None] = []
    for row in range(len(ious)):
        best = int(free[row].argmax()) if free.shape[1] else 0
        if free.shape[1] and free[row, best] >= _MIN_IOU:
            free[:, best] = 0
            verdicts.append(True)
        else:
            verdicts.append(None if (ious[row, crowd] >= _MIN_IOU).any() else False)
    return verdicts


def confusion_matrix(predictions: Predictions, threshold: float) -> np.ndarray:
    """Count which classes are detected as which.

    Boxes are paired by IoU alone, the highest first, each detection and each object once.

    Args:
        predictions: on a dataset.
        threshold: lowest score of a detection that counts.

    Returns:
        (K + 1, K + 1): true class by detected class. The last row counts detections that are not
        on any object, the last column objects without a detection.
    """
    num_classes = len(predictions.class_names)
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=int)
    objects, found = defaultdict(list), defaultdict(list)
    for annotation in predictions.ground_truth.anns.values():
        objects[annotation["image_id"]].append(annotation)
    for detection in predictions.detections:
        if detection["score"] >= threshold:
            found[detection["image_id"]].append(detection)
    for image_id in predictions.ground_truth.imgs:
        _confuse(matrix, found[image_id], objects[image_id], predictions.to_class)
    return matrix


def _confuse(
    matrix: np.ndarray,
    detections: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    to_class: dict[int, int],
) -> None:
    """Add the pairs of one image to ``matrix``."""
    background = len(matrix) - 1
    ious, crowd = _ious(detections, annotations)
    on_crowd = (ious[:, crowd] >= _MIN_IOU).any(axis=1)
    rows, columns = np.nonzero((ious >= _MIN_IOU) & ~crowd)
    free_rows, free_columns = set(range(len(detections))), set(np.flatnonzero(~crowd).tolist())
    for pair in np.argsort(-ious[rows, columns], kind="stable"):
        row, column = int(rows[pair]), int(columns[pair])
        if row in free_rows and column in free_columns:
            free_rows.remove(row)
            free_columns.remove(column)
            true = to_class[annotations[column]["category_id"]]
            matrix[true, to_class[detections[row]["category_id"]]] += 1
    for row in free_rows:
        if not on_crowd[row]:
            matrix[background, to_class[detections[row]["category_id"]]] += 1
    for column in free_columns:
        matrix[to_class[annotations[column]["category_id"]], background] += 1
