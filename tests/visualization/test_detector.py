"""Detector: a trained model, its classes and what it finds, from nothing but the run's folder."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances
from PIL import Image

import d2_plugins
from d2_plugins import Detector
from d2_plugins.data import register_coco_json
from d2_plugins.data.classes import Classes, find_classes
from d2_plugins.engine import Trainer
from d2_plugins.errors import UsageError
from d2_plugins.visualization.detections import Detections
from d2_plugins.visualization.detector import run_config
from tests.support.toy import toy_cfg, write_toy_coco

# Not contiguous, and not in the order of the names.
CATEGORIES = {9: "dark", 4: "bright"}
CLASSES = Classes(("bright", "dark"), (4, 9))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run on data of one's own, which is no longer registered."""
    folder = tmp_path_factory.mktemp("run")
    json_file, images = write_toy_coco(folder / "data")
    content = json.loads(json_file.read_text())
    content["categories"] = [{"id": id_, "name": name} for id_, name in CATEGORIES.items()]
    for annotation in content["annotations"]:
        annotation["category_id"] = {1: 9, 2: 4}[annotation["category_id"]]
    json_file.write_text(json.dumps(content))
    register_coco_json("own_data", json_file, images)
    cfg = own_cfg(folder)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    DatasetCatalog.remove("own_data")
    MetadataCatalog.remove("own_data")
    yield folder
    shutil.rmtree(folder)


def own_cfg(folder: Path) -> CfgNode:
    opts = ["DATASETS.TRAIN", ("own_data",), "DATASETS.TEST", (), "SOLVER.MAX_ITER", 2, "SEED", 0]
    return toy_cfg(folder, [*opts, "MODEL.DEVICE", "cpu"])


def photos(run: Path) -> list[Path]:
    return sorted((run / "data" / "images").iterdir())


def assert_same(found: Instances, expected: Instances, tolerance: float = 0) -> None:
    assert len(found) == len(expected) > 0
    pairs = [
        (found.pred_boxes.tensor, expected.pred_boxes.tensor),
        (found.scores, expected.scores),
        (found.pred_classes, expected.pred_classes),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_the_package_offers_it() -> None:
    assert d2_plugins.Detector is Detector
    with pytest.raises(AttributeError, match="no attribute 'Detectors'"):
        d2_plugins.Detectors  # noqa: B018


def test_classes_are_kept_with_the_run(run: Path) -> None:
    assert Classes.read(run) == CLASSES
    checkpoint = torch.load(run / "model_final.pth", weights_only=True)
    assert checkpoint["classes"] == {"names": ["bright", "dark"], "category_ids": [4, 9]}


def test_three_lines(run: Path, tmp_path: Path) -> None:
    detector = Detector(run, confidence=0.0)
    detections = detector.predict(photos(run)[0])
    detections.draw().save(tmp_path / "drawn.png")
    rows = detections.to_coco(image_id=5)

    cfg = own_cfg(run)
    cfg.MODEL.WEIGHTS = str(run / "model_final.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    expected = DefaultPredictor(cfg)(cv2.imread(str(photos(run)[0])))["instances"]
    assert_same(detections.instances, expected, tolerance=1e-4)
    assert len(rows) == len(detections) == len(expected)
    for row, k, score in zip(rows, expected.pred_classes.tolist(), expected.scores, strict=True):
        assert row["category_id"] == (4, 9)[k]
        assert row["score"] == pytest.approx(score.item())
        assert (row["image_id"], row["file_name"]) == (5, str(photos(run)[0]))
    assert detections.classes == [CLASSES.names[k] for k in expected.pred_classes.tolist()]
    assert set(detections.classes) == {"bright", "dark"}
    assert detections.boxes.shape == (len(rows), 4)
    assert Image.open(tmp_path / "drawn.png").size == Image.open(photos(run)[0]).size


@pytest.mark.parametrize("folded", [True, False])
def test_inference_form_is_a_choice(run: Path, folded: bool) -> None:
    cfg = own_cfg(run)
    cfg.MODEL.WEIGHTS = str(run / "model_final.pth")
    assert cfg.TEST.INFERENCE_FORM
    cfg.TEST.INFERENCE_FORM = folded
    model = Detector(cfg).model
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d | FrozenBatchNorm2d)]
    assert (not norms) == folded


def test_every_kind_of_photo_and_batches(run: Path) -> None:
    detector = Detector(run, confidence=0.0)
    paths = photos(run)[:5]
    singles = [detector.predict(str(path)) for path in paths]
    pixels = cv2.imread(str(paths[0]))
    assert_same(detector.predict(pixels).instances, singles[0].instances)
    assert_same(detector.predict(Image.open(paths[0])).instances, singles[0].instances)
    assert_same(detector(pixels)["instances"], singles[0].instances)
    for batch_size in (2, 8):
        together = detector.predict(paths, batch_size=batch_size)
        assert [d.file_name for d in together] == [str(path) for path in paths]
        for ours, theirs in zip(together, singles, strict=True):
            assert_same(ours.instances, theirs.instances, tolerance=1e-3)
    assert detector.predict([]) == []
    with pytest.raises(OSError, match=r"gone\.png"):
        detector.predict("gone.png")


def test_video(run: Path, tmp_path: Path) -> None:
    frames = [cv2.imread(str(path)) for path in photos(run)[:3]]
    writer = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (80, 64))
    for frame in frames:
        writer.write(frame)
    writer.release()
    detector = Detector(run, confidence=0.0)
    found = list(detector.predict_video(tmp_path / "v.mp4"))
    assert len(found) == 3
    for detections, frame in zip(found, frames, strict=True):
        assert np.abs(detections.image.astype(int) - frame).mean() < 20  # compressed
        assert_same(detections.instances, detector.predict(detections.image).instances)


def test_confidence(run: Path) -> None:
    scores = Detector(run, confidence=0.0).predict(photos(run)[0]).scores
    threshold = float(np.median(scores))
    kept = Detector(run, confidence=threshold).predict(photos(run)[0]).scores
    assert 0 < len(kept) < len(scores)
    assert (kept > threshold).all()


def test_drawing_shows_box_and_name() -> None:
    image = np.full((200, 240, 3), (30, 60, 200), np.uint8)
    found = Instances((200, 240), pred_boxes=Boxes(torch.tensor([[40.0, 60, 200, 180]])))
    found.scores, found.pred_classes = torch.tensor([0.75]), torch.tensor([1])
    drawn = np.asarray(Detections(image, found, CLASSES.metadata()).draw()).astype(int)
    changed = np.abs(drawn - image[0, 0, ::-1]).max(axis=-1) > 5
    rows, columns = changed.nonzero()
    extent = [columns.min(), rows.min(), columns.max(), rows.max()]
    assert extent == pytest.approx([40, 60, 200, 180], abs=4)
    assert changed[120, 40] or changed[120, 39] or changed[120, 41]
    assert not changed[150, 120], "nothing is drawn inside but the label"
    assert changed[60:80, 45:100].mean() > 0.3, "the label"


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["model_best.pth", "model_final.pth"], "model_best.pth"),
        (["model_final.pth", "model_0000009.pth"], "model_final.pth"),
        (["model_0000009.pth"], "model_0000009.pth"),
    ],
)
def test_weights_of_a_folder(tmp_path: Path, files: list[str], chosen: str) -> None:
    (tmp_path / "config.yaml").write_text(own_cfg(tmp_path).dump())
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    for name in files:
        (tmp_path / name).touch()
    assert run_config(tmp_path).MODEL.WEIGHTS == str(tmp_path / chosen)
    explicit = run_config(tmp_path / files[-1])
    assert explicit.MODEL.WEIGHTS == str(tmp_path / files[-1])
    gpu = torch.cuda.is_available()
    assert explicit.MODEL.DEVICE == ("cuda" if gpu else "cpu")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.yaml"):
        Detector(tmp_path)
    (tmp_path / "config.yaml").write_text(own_cfg(tmp_path).dump())
    message = r"no weights: none of model_best\.pth, model_final\.pth and the checkpoint"
    with pytest.raises(UsageError, match=message):
        Detector(tmp_path)
    with pytest.raises(UsageError, match="no config file 'nowhere/run'"):
        Detector("nowhere/run")
    with pytest.raises(UsageError, match=r"MODEL\.WEIGHTS is empty"):
        Detector(own_cfg(tmp_path))


def test_where_the_classes_come_from(
    tmp_path: Path, catalogs: None, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = toy_cfg(tmp_path)  # of the shapes, whose first two names would do for its model
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    shapes = Classes.of_dataset("shapes_val")
    assert shapes is not None
    adjacent = Classes(("a", "b"), (1, 2))
    adjacent.write(tmp_path)
    assert find_classes(cfg, {"classes": CLASSES.state_dict()}) == CLASSES
    assert find_classes(cfg, {}) == find_classes(cfg, {"classes": ["x"]}) == adjacent
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(shapes.names)
    assert find_classes(cfg, {"classes": CLASSES.state_dict()}) == shapes
    assert "The checkpoint names 2 classes, the model has 4" in caplog.text
    cfg.DATASETS.TEST = ("registered_nowhere",)
    assert find_classes(cfg, {}) == shapes, "of the training data"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    assert find_classes(cfg, {}) is None
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.RETINANET.NUM_CLASSES = 4
    assert find_classes(cfg, {}) == shapes


@pytest.mark.parametrize(
    "state",
    [None, {}, {"names": ["a"]}, {"names": ["a"], "category_ids": [1, 2]},
     {"names": ["a"], "category_ids": [1.5]}, {"names": "a", "category_ids": [1]}],
)  # fmt: skip
def test_broken_classes_are_not_taken(state: Any, tmp_path: Path) -> None:
    assert Classes.from_state(state) is None
    (tmp_path / "classes.json").write_text(json.dumps(state) + "x" * (state == {}))
    assert Classes.read(tmp_path) is None


def test_classes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(
        json.dumps({"categories": [{"id": i, "name": n} for i, n in CATEGORIES.items()]})
    )
    assert Classes.from_json(path) == CLASSES
    CLASSES.write(tmp_path)
    assert Classes.from_json(tmp_path / "classes.json") == CLASSES
    for content in ("{", "[]", "{}", '{"categories": []}', '{"categories": [{"id": 1}]}'):
        path.write_text(content)
        with pytest.raises(UsageError, match=r"own\.json has no COCO categories"):
            Classes.from_json(path)
    with pytest.raises(UsageError, match=r"no file 'none\.json'"):
        Classes.from_json("none.json")


def test_unknown_classes_are_said_so(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = own_cfg(run)
    checkpoint = torch.load(run / "model_final.pth", weights_only=True)
    (run / "elsewhere").mkdir()
    torch.save({"model": checkpoint["model"]}, run / "elsewhere" / "old.pth")
    cfg.MODEL.WEIGHTS = str(run / "elsewhere" / "old.pth")
    cfg.DATASETS.TRAIN = ()
    detections = Detector(cfg, confidence=0.0).predict(photos(run)[0])
    assert "The classes of this model are unknown" in caplog.text
    assert set(detections.classes) == {"0", "1"}
    assert {row["category_id"] for row in detections.to_coco()} == {0, 1}
    named = Detector(cfg, confidence=0.0, classes=CLASSES).predict(photos(run)[0])
    assert {row["category_id"] for row in named.to_coco()} == {4, 9}
