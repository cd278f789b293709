"""Precision, recall and confusion against pycocotools and against counting by hand."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from pycocotools.coco import COCO

from d2_plugins.evaluation import evaluate_detections
from d2_plugins.report.run import Predictions
from d2_plugins.report.thresholds import THRESHOLDS, confusion_matrix, match_detections
from tests.support.random_coco import CATEGORIES, random_annotations, random_instances


def predictions_of(data: dict[str, Any], detections: list[dict[str, Any]]) -> Predictions:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = data
        coco.createIndex()
    names = {c["id"]: c["name"] for c in data["categories"]}
    to_class = {category: k for k, category in enumerate(names)}
    return Predictions([], coco, detections, list(names.values()), to_class)


def random_predictions(seed: int) -> Predictions:
    data = random_annotations(seed, num_images=20)
    detections = []
    for image_id, instances in random_instances(data, seed, masks=False, keypoints=False).items():
        for row in instances_to_coco_json(instances, image_id):
            category = list(CATEGORIES)[row["category_id"]]
            detections.append(row | {"category_id": category})
    return predictions_of(data, detections)


@pytest.mark.parametrize("seed", range(4))
def test_matches_are_those_of_pycocotools(seed: int) -> None:
    predictions = random_predictions(seed)
    assert any(a["iscrowd"] for a in predictions.ground_truth.anns.values())
    matches = match_detections(predictions)
    evaluated = evaluate_detections(
        predictions.ground_truth, predictions.detections, "bbox", engine="pycocotools"
    )
    expected = []
    num_objects = np.zeros(len(CATEGORIES), int)
    every_area = evaluated.params.areaRng[0]
    for entry in filter(None, evaluated.evalImgs):
        if entry["aRng"] != every_area:
            continue
        k = entry["category_id"] - 1  # the evaluation numbers the categories from 1
        num_objects[k] += (~np.asarray(entry["gtIgnore"], bool)).sum()
        for score, match, ignored in zip(
            entry["dtScores"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True
        ):
            if not ignored:
                expected.append((k, score, bool(match)))
    ours = zip(
        matches.classes.tolist(), matches.scores.tolist(), matches.is_correct.tolist(), strict=True
    )
    assert sorted(ours) == sorted(expected)
    assert matches.num_objects.tolist() == num_objects.tolist()


def test_best_thresholds_by_brute_force() -> None:
    matches = match_detections(random_predictions(0))
    each, overall = matches.best_thresholds()

    def f1(threshold: float, classes: list[int]) -> float:
        kept = (matches.scores >= threshold) & np.isin(matches.classes, classes)
        return (
            2
            * (kept & matches.is_correct).sum()
            / (kept.sum() + matches.num_objects[classes].sum())
        )

    for k, threshold in enumerate(each):
        if k == 3:  # no object, so no correct detection
            assert np.isnan(threshold)
            continue
        values = [f1(t, [k]) for t in THRESHOLDS]
        assert f1(threshold, [k]) == pytest.approx(max(values))
        assert all(value < max(values) for value in values[round(100 * threshold) :])
    assert f1(overall, [0, 1, 2, 3]) == pytest.approx(max(f1(t, [0, 1, 2, 3]) for t in THRESHOLDS))
    correct, found = matches.counts(overall)
    assert correct.sum() < found.sum() < len(matches.scores)


def hand_made() -> Predictions:
    """Two images of cats and dogs, with every kind of confusion once."""
    boxes = {"a": [0, 0, 10, 10], "b": [20, 0, 10, 10], "c": [40, 0, 10, 10], "d": [60, 0, 30, 30]}
    objects = [(1, "a", 5, 0), (1, "b", 5, 0), (1, "c", 9, 0), (1, "d", 9, 1), (2, "a", 9, 0)]
    found = [
        (1, "a", 5, 0.9),  # correct
        (1, "a", 9, 0.8),  # second detection of an object that is taken
        (1, "b", 9, 0.7),  # a cat detected as a dog
        (1, "d", 9, 0.6),  # on a crowd: does not count
        (2, "c", 5, 0.6),  # no object; the dog at "a" is not detected
        (2, "a", 9, 0.3),  # below the threshold
    ]
    data = {
        "images": [{"id": i, "width": 100, "height": 40} for i in (1, 2)],
        "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": image, "bbox": boxes[box], "category_id": category,
             "iscrowd": crowd, "area": 100}
            for i, (image, box, category, crowd) in enumerate(objects, start=1)
        ],
    }  # fmt: skip
    detections = [
        {"image_id": image, "bbox": boxes[box], "category_id": category, "score": score}
        for image, box, category, score in found
    ]
    return predictions_of(data, detections)


def test_confusion_matrix() -> None:
    # Rows cat, dog, no object; columns cat, dog, not detected.
    assert confusion_matrix(hand_made(), 0.5).tolist() == [[1, 1, 0], [0, 0, 2], [1, 1, 0]]
    assert confusion_matrix(hand_made(), 0.2).tolist() == [[1, 1, 0], [0, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_confusion_matrix_counts_everything_once(seed: int) -> None:
    predictions = random_predictions(seed)
    matrix = confusion_matrix(predictions, 0.4)
    matches = match_detections(predictions)
    assert matrix[:-1].sum(axis=1).tolist() == matches.num_objects.tolist()
    found = sum(d["score"] >= 0.4 for d in predictions.detections)
    on_crowd = found - matrix[:, :-1].sum()
    assert 0 <= on_crowd < 0.2 * found
    assert matrix[:-1, :-1].trace() > 0.5 * matches.counts(0.4)[0].sum()


def test_nothing_detected() -> None:
    predictions = predictions_of(random_annotations(0), [])
    matches = match_detections(predictions)
    each, overall = matches.best_thresholds()
    assert np.isnan(each).all()
    assert np.isnan(overall)
    assert confusion_matrix(predictions, 0.5)[:, :-1].sum() == 0
