"""Tracker: the numbers follow the true identities of moving shapes, and are drawn and written."""

import builtins
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from PIL import Image

from d2_plugins.cli import predict
from d2_plugins.visualization.detections import Detections
from d2_plugins.visualization.tracking import Tracker

SIZE = (120, 200)  # height, width
NAMES = Metadata(thing_classes=["square", "bar"], thing_dataset_id_to_contiguous_id={5: 0, 7: 1})
NEEDS_TRACKERS = "needs the extra d2_plugins[track]"


@pytest.fixture
def trackers() -> Any:
    return pytest.importorskip("trackers", reason=NEEDS_TRACKERS)


def frame(objects: Sequence[tuple[Sequence[float], float, int]]) -> Detections:
    """Detections of (box, score, class), in this order."""
    found = Instances(SIZE)
    found.pred_boxes = Boxes(torch.tensor([box for box, _, _ in objects]).reshape(-1, 4))
    found.scores = torch.tensor([score for _, score, _ in objects])
    found.pred_classes = torch.tensor([k for _, _, k in objects], dtype=torch.long)
    return Detections(np.full((*SIZE, 3), 90, np.uint8), found, NAMES)


def square(x: float, y: float, size: float = 20) -> list[float]:
    return [x, y, x + size, y + size]


def follow(
    frames: Sequence[dict[str, tuple[Sequence[float], float, int]]], **options: Any
) -> list[dict[str, int | None]]:
    """Return the number of each object, by its true name, frame by frame; shuffled on the way."""
    tracker = Tracker(**options)
    rng = np.random.default_rng(0)
    numbers = []
    for objects in frames:
        names = [str(name) for name in rng.permutation(list(objects))]
        given = frame([objects[name] for name in names])
        found = tracker.update(given)
        assert not given.instances.has("track_ids"), "the argument is not changed"
        by_box = {
            tuple(b): i for b, i in zip(found.boxes.tolist(), found.track_ids or [], strict=True)
        }
        boxes = {name: tuple(np.float32(objects[name][0]).tolist()) for name in names}
        numbers.append({name: by_box[box] for name, box in boxes.items() if box in by_box})
        assert len(numbers[-1]) == len(found)
    return numbers


def moving(steps: int = 40) -> list[dict[str, tuple[list[float], float, int]]]:
    """Two squares that meet and pass, a bar on top of one of them, and a late square."""
    rng = np.random.default_rng(3)
    frames = []
    for t in range(steps):
        jitter = rng.uniform(-0.7, 0.7, (4, 4))
        boxes = {
            "right": (square(5 + 4 * t, 20), 0.9, 0),
            "left": (square(175 - 4 * t, 34), 0.8, 0),
            "bar": (square(6 + 4 * t, 21), 0.85, 1),
        }
        if t >= 15:
            boxes["late"] = (square(60, 90 - t), 0.7, 0)
        frames.append(
            {
                name: ([float(v) for v in np.add(box, noise)], score, k)
                for (name, (box, score, k)), noise in zip(boxes.items(), jitter, strict=False)
            }
        )
    return frames


def test_numbers_follow_the_true_objects(trackers: Any) -> None:
    frames = moving()
    for t in range(24, 30):
        del frames[t]["left"]  # hidden for six frames
    for t in (10, 11, 12):
        box, _, k = frames[t]["right"]
        frames[t]["right"] = (box, 0.15, k)  # hardly seen
    numbers = follow(frames)
    by_name = defaultdict(list)
    for row in numbers:
        for name, number in row.items():
            by_name[name].append(number)
    assert [len(by_name[name]) for name in ("right", "left", "bar", "late")] == [40, 34, 40, 25]
    for name, seen in by_name.items():
        assert seen[0] is None, f"{name} is numbered in its second frame"
        assert len(set(seen[1:])) == 1, name
        assert None not in seen[1:], name
    assert sorted(seen[1] for seen in by_name.values()) == [1, 2, 3, 4]


def test_low_scores_only_continue(trackers: Any) -> None:
    weak, box = (square(150, 80), 0.3, 0), square(20, 20)
    frames = [{"weak": weak, "strong": (box, 0.9, 0)}] * 3 + [
        {"weak": weak, "strong": (box, 0.2, 0)}
    ]
    numbers = follow(frames)
    assert [row.get("strong", "absent") for row in numbers] == [None, 1, 1, 1]
    assert all("weak" not in row for row in numbers)
    assert follow([{"weak": weak}] * 2, confidence=0.2) == [{"weak": None}, {"weak": 1}]


@pytest.mark.parametrize(("gap", "kept"), [(9, True), (11, False)])
def test_a_number_is_lost_after_a_second(trackers: Any, gap: int, kept: bool) -> None:
    there = {"a": (square(20, 20), 0.9, 0)}
    numbers = follow([there] * 5 + [{}] * gap + [there] * 3, fps=10.0)
    assert numbers[4]["a"] == 1
    assert numbers[-1]["a"] == (1 if kept else 2)


def test_written_as_track_id() -> None:
    detections = frame([(square(1, 2), 0.9, 1), (square(50, 50), 0.8, 0)])
    assert "track_id" not in detections.to_coco()[0]
    detections.instances.track_ids = torch.tensor([12, -1])
    assert [row["track_id"] for row in detections.to_coco()] == [12, None]


def test_each_number_has_a_colour() -> None:
    def edge(track_id: int, x: int, masks: bool = False) -> list[int]:
        detections = frame([(square(x, 40, 60), 0.9, 0)])
        detections.instances.track_ids = torch.tensor([track_id])
        if masks:
            detections.instances.pred_masks = torch.ones(1, *SIZE, dtype=torch.bool)
        # The bottom edge, away from the label.
        return np.asarray(detections.draw())[99:102, x + 30].astype(int).min(axis=0).tolist()

    assert edge(1, 20) == edge(1, 90) != edge(2, 20)
    assert edge(74, 20) != edge(1, 20), "there are 73 colours and one more"
    assert edge(1, 20, masks=True) != [90] * 3
    empty = frame([])
    empty.instances.track_ids = torch.zeros(0, dtype=torch.long)
    assert np.asarray(empty.draw()).std() == 0


class ColourDetector:
    """Stands in for Detector: finds red and green squares, exactly and with a score of 0.8."""

    def __init__(self, cfg: object, *, confidence: float, **_: Any) -> None:
        self.confidence = confidence
        self.metadata = NAMES

    def predict(self, source: np.ndarray | Path) -> Detections:
        image = source if isinstance(source, np.ndarray) else cv2.imread(str(source))
        rows: list[tuple[list[float], float, int]] = []
        for channel in (1, 2):
            mask = np.uint8(image[..., channel] > 150)
            _, _, boxes, _ = cv2.connectedComponentsWithStats(mask)
            rows += [([x, y, x + w, y + h], 0.8, 0) for x, y, w, h, area in boxes[1:] if area > 50]
        found = frame([([float(v) for v in box], score, k) for box, score, k in rows]).instances
        assert self.confidence == 0.1, "low scores reach the tracker"
        return Detections(image, found, NAMES, "" if source is image else str(source))


def pictures(steps: int = 12) -> Iterator[np.ndarray]:
    """A red square going right and a green one going left, on grey."""
    for t in range(steps):
        image = np.full((*SIZE, 3), 60, np.uint8)
        image[20:44, 10 + 6 * t : 34 + 6 * t] = (0, 0, 250)
        image[60:84, 160 - 6 * t : 184 - 6 * t] = (0, 250, 0)
        yield image


@pytest.mark.parametrize("kind", ["--video-input", "--input"])
def test_command(kind: str, trackers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "Detector", ColourDetector)
    source = tmp_path / ("street.mp4" if kind == "--video-input" else "frames")
    if kind == "--input":
        source.mkdir()
        for t, image in enumerate(pictures()):
            cv2.imwrite(str(source / f"{t:03}.png"), image)
    else:
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(source), codec, 25.0, SIZE[::-1])
        for image in pictures():
            writer.write(image)
        writer.release()
    words = [kind, source, "--output", tmp_path / "drawn", "--json", tmp_path / "rows.json"]
    argv = ["--config-file", "Demo/faster_rcnn.yaml", "--track", *words]
    assert predict.main([str(word) for word in argv]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 24
    numbers: dict[str, set[int | None]] = {"red": set(), "green": set()}
    for row in rows:
        assert (row["track_id"] is None) == (row["image_id"] == 0)
        if row["image_id"]:
            numbers["red" if row["bbox"][1] < 50 else "green"].add(row["track_id"])
    assert sorted(map(len, numbers.values())) == [1, 1]
    assert numbers["red"] | numbers["green"] == {1, 2}
    drawn = list((tmp_path / "drawn").iterdir())
    assert len(drawn) == (1 if kind == "--video-input" else 12)
    if kind == "--input":
        picture = np.asarray(Image.open(tmp_path / "drawn" / "005.png")).astype(int)
        assert np.abs(picture - 60).max(axis=-1)[84:88, 130:154].max() > 40, "the edge of the box"


def test_missing_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original = builtins.__import__

    def without_trackers(name: str, *rest: Any, **options: Any) -> Any:
        if name == "trackers":
            raise ModuleNotFoundError("No module named 'trackers'", name=name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without_trackers)
    monkeypatch.setattr(predict, "find_images", lambda _: [Path("a.png")])
    argv = [
        "--config-file",
        "Demo/faster_rcnn.yaml",
        "--input",
        "a.png",
        "--track",
        "--json",
        "x.json",
    ]
    assert predict.main(argv) == 2
    expected = "error: --track: tracking needs trackers: pip install 'd2_plugins[track]'\n"
    assert capsys.readouterr().err == expected
