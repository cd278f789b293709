"""The pictures of a report, read from their pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.structures import BoxMode
from matplotlib.colors import to_rgb
from PIL import Image
from pycocotools import mask as mask_util

from d2_plugins.report.curves import COLOURS
from d2_plugins.report.pictures import (
    Example,
    contact_sheet,
    draw,
    place_labels,
    score_threshold,
)
from d2_plugins.report.run import MissingError, Predictions

SIZE = 120
BOX = (30, 40, 50, 60)  # XYWH


def example(folder: Path, *, detected_mask: bool) -> tuple[Example, Predictions]:
    """A grey image with a triangle of the second class, found in its place."""
    Image.new("RGB", (SIZE, SIZE), (128, 128, 128)).save(folder / "grey.png")
    x, y, w, h = BOX
    triangle = [[x, y, x + w, y, x, y + h]]
    truth = {"bbox": list(BOX), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    item = {
        "file_name": str(folder / "grey.png"),
        "image_id": 1,
        "annotations": [truth | {"segmentation": triangle}],
    }
    detection: dict[str, Any] = {"image_id": 1, "bbox": list(BOX), "category_id": 7, "score": 0.9}
    if detected_mask:
        (rle,) = mask_util.frPyObjects(triangle, SIZE, SIZE)
        detection["segmentation"] = rle
    predictions = Predictions([item], None, [detection], ["cat", "dog"], {3: 0, 7: 1})
    return Example(item, [detection], 1.0), predictions


def at(picture: Image.Image, x: float, y: float) -> np.ndarray:
    """The colour at a place of the image, wherever the picture shows it."""
    scale = picture.width / SIZE
    return np.asarray(picture.convert("RGB"))[round(y * scale), round(x * scale)].astype(int)


@pytest.mark.parametrize("detected_mask", [False, True])
def test_truth_looks_like_detections(tmp_path: Path, detected_mask: bool) -> None:
    truth, detected = draw(*example(tmp_path, detected_mask=detected_mask))
    assert truth.size == detected.size == (600, 600)
    colour = 255 * np.array(to_rgb(COLOURS[1]))
    x, y, w, h = BOX
    for picture in (truth, detected):
        for edge in ((x + w, y + h / 2), (x + w / 2, y + h)):
            distance = np.abs(at(picture, *edge) - colour).max()
            assert distance < np.abs(128 - colour).max() / 2, "the box is drawn in its place"
        inside = at(picture, x + 8, y + 20)
        assert (np.abs(inside - 128).max() > 15) == detected_mask
        assert np.abs(at(picture, x + w - 5, y + h - 5) - 128).max() < 4, "outside of the triangle"
        assert np.abs(at(picture, 5, 5) - 128).max() < 4
    # The pictures differ in the text of the label only, which stands above the box.
    changed = np.abs(np.asarray(truth).astype(int) - np.asarray(detected)).max(axis=-1) > 20
    rows, columns = changed.nonzero()
    assert 0 < len(rows) < 6000
    if not detected_mask:  # whose outline, of an RLE, has other pixels than that of a polygon
        assert rows.max() <= 5 * y + 2
        assert columns.min() >= 5 * x - 3


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    shown, predictions = example(tmp_path, detected_mask=False)
    (tmp_path / "grey.png").write_bytes(b"no image")
    with pytest.raises(MissingError, match=r"grey\.png cannot be read"):
        draw(shown, predictions)


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


def test_labels_do_not_hide_each_other() -> None:
    limits = (600, 500)
    box = (100.0, 100.0, 300.0, 250.0)
    assert place_labels([box], [(60, 20)], limits) == [(100, 80)], "above the box where it is free"
    assert place_labels([(0.0, 5.0, 90.0, 80.0)], [(60, 20)], limits) == [(0, 0)], "in the picture"
    boxes = [box] * 6 + [(580.0, 480.0, 600.0, 500.0)]
    sizes = [(60.0, 20.0)] * 7
    places = [
        (x, y, x + w, y + h)
        for (x, y), (w, h) in zip(place_labels(boxes, sizes, limits), sizes, strict=True)
    ]
    for i, a in enumerate(places):
        assert all(overlap(a, b) == 0 for b in places[:i])
        assert 0 <= a[0]
        assert 0 <= a[1]
        assert a[2] <= limits[0]
        assert a[3] <= limits[1]


@pytest.mark.parametrize(
    ("scores", "recommended", "threshold"),
    [
        ([0.9, 0.2], 0.71, 0.5),
        ([0.9, 0.2], 0.26, 0.26),
        ([0.9, 0.2], float("nan"), 0.5),
        ([0.3, 0.2], float("nan"), 0.15),
        ([], float("nan"), 0.5),
    ],
)
def test_score_threshold(scores: list[float], recommended: float, threshold: float) -> None:
    detections = [{"score": score} for score in scores]
    predictions = Predictions([], None, detections, [], {})
    assert score_threshold(predictions, recommended) == pytest.approx(threshold)


def test_contact_sheet_is_as_wide_as_its_pictures() -> None:
    red, blue = Image.new("RGB", (50, 40), "red"), Image.new("RGB", (30, 60), "blue")
    sheet = np.asarray(contact_sheet([("a", red, blue), ("b", blue, red)]))
    assert sheet.shape == (2 * (60 + 30 + 8) + 8, 2 * 50 + 3 * 8, 3)
    is_red = (sheet == (255, 0, 0)).all(axis=-1)
    is_blue = (sheet == (0, 0, 255)).all(axis=-1)
    assert is_red.sum() == 2 * 50 * 40
    assert is_blue.sum() == 2 * 30 * 60
    assert is_red[38:78, 8:58].all()
    assert is_blue[38:98, 66:96].all()
