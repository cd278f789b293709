"""tools/demo.py: what it finds equals DefaultPredictor's, what it writes is whole."""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as mask_util

from d2_plugins.cli.predict import main
from d2_plugins.errors import UsageError
from d2_plugins.modeling import inference_form
from d2_plugins.visualization.detect_images import find_images
from d2_plugins.visualization.detections import Detections
from tests.support.toy import lively_model, toy_cfg, write_toy_coco

THRESHOLD = 0.34


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, a video, and a detector with masks, with its weights for both formats."""
    folder = tmp_path_factory.mktemp("demo")
    write_toy_coco(folder, num_images=3, size=(60, 90))
    frames = []
    for path in sorted((folder / "images").iterdir()):
        frames.append(cv2.imread(str(path)))
        frames[-1][..., 0] //= 4  # little blue: channels in a wrong order show
        cv2.imwrite(str(path), frames[-1])
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(folder / "street.mp4"), codec, 12.0, (90, 60))
    for i in range(7):
        writer.write(frames[i % 3])
    writer.release()
    torch.save({"model": lively_model(toy(folder)).state_dict()}, folder / "model.pth")
    return folder


def toy(folder: Path, image_format: str = "RGB") -> CfgNode:
    opts = ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8]
    cfg = toy_cfg(folder, [*opts, "MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.DEVICE", "cpu"])
    cfg.INPUT.FORMAT = image_format
    return cfg


def detect(folder: Path, images: list[np.ndarray], image_format: str = "RGB") -> list[Instances]:
    """Return the detections of DefaultPredictor in BGR images."""
    cfg = toy(folder, image_format)
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = THRESHOLD
    predictor = DefaultPredictor(cfg)
    predictor.model = inference_form(predictor.model)
    return [predictor(image)["instances"] for image in images]


def command(
    folder: Path, *words: str | Path, image_format: str = "RGB", weights: Path | None = None
) -> int:
    config = folder / f"{image_format}.yaml"
    config.write_text(toy(folder, image_format).dump())
    argv = ["--config-file", config, "--confidence-threshold", THRESHOLD, *words]
    return main([str(a) for a in [*argv, "MODEL.WEIGHTS", weights or folder / "model.pth"]])


def check_rows(rows: list[dict[str, Any]], expected: list[Instances], names: list[str]) -> None:
    assert sum(map(len, expected)) == len(rows) > 3
    rest = iter(rows)
    for number, (instances, name) in enumerate(zip(expected, names, strict=True)):
        for k in range(len(instances)):
            row = next(rest)
            assert (row["image_id"], row["file_name"]) == (number, name)
            assert row["score"] == pytest.approx(instances.scores[k].item())
            assert row["score"] > THRESHOLD
            # The names and category ids of the toy config's dataset, shapes_val.
            assert row["category_id"] == instances.pred_classes[k].item() + 1
            x0, y0, x1, y1 = instances.pred_boxes.tensor[k].tolist()
            assert row["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-4)
            mask = mask_util.decode(row["segmentation"])
            assert np.array_equal(mask, instances.pred_masks[k].numpy())


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_images(folder: Path, tmp_path: Path, image_format: str) -> None:
    single = tmp_path / "single.jpg"
    Image.open(folder / "images" / "001.png").save(single)
    inputs = [single, folder / "images" / "*[02].png"]
    output = tmp_path / "drawn"
    words = ["--input", *inputs, "--output", output, "--json", tmp_path / "rows.json"]
    assert command(folder, *words, image_format=image_format) == 0
    paths = [single, folder / "images" / "000.png", folder / "images" / "002.png"]
    photographs = [cv2.imread(str(path)) for path in paths]
    rows = json.loads((tmp_path / "rows.json").read_text())
    check_rows(rows, detect(folder, photographs, image_format), [str(path) for path in paths])
    assert sorted(path.name for path in output.iterdir()) == ["000.png", "002.png", "single.jpg"]
    drawn = np.asarray(Image.open(output / "000.png"))[..., ::-1].astype(int)
    changed = np.abs(drawn - photographs[1]).max(axis=-1) > 40
    assert drawn.shape == photographs[1].shape
    assert 0.02 < changed.mean() < 0.9  # boxes and masks


@pytest.mark.slow
def test_video(folder: Path, tmp_path: Path) -> None:
    video = folder / "street.mp4"
    words = ["--video-input", video, "--output", tmp_path, "--json", tmp_path / "rows.json"]
    assert command(folder, *words) == 0
    frames, _ = read_video(video)
    assert len(frames) == 7
    rows = json.loads((tmp_path / "rows.json").read_text())
    check_rows(rows, detect(folder, frames), [str(video)] * 7)
    drawn, fps = read_video(tmp_path / "street.mp4")
    assert [frame.shape for frame in drawn] == [(60, 90, 3)] * 7
    assert fps == pytest.approx(12.0)
    difference = [
        np.abs(a.astype(int) - b).max(axis=-1) for a, b in zip(drawn, frames, strict=True)
    ]
    assert all(0.02 < (d > 40).mean() < 0.9 for d in difference)
    assert {path.name for path in tmp_path.iterdir()} == {"street.mp4", "rows.json"}


def test_where_nothing_is_detected_nothing_is_drawn(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--output", tmp_path, "--json", tmp_path / "rows.json", "--confidence-threshold", 1]
    photograph = folder / "images" / "002.png"
    assert command(folder, "--input", photograph, *rest) == 0
    assert json.loads((tmp_path / "rows.json").read_text()) == []
    assert "no object has a score of 1 or more; a lower --conf" in capsys.readouterr().out
    assert np.array_equal(cv2.imread(str(tmp_path / "002.png")), cv2.imread(str(photograph)))
    assert command(folder, "--video-input", folder / "street.mp4", *rest) == 0
    drawn, frames = (read_video(at / "street.mp4")[0] for at in (tmp_path, folder))
    assert np.abs(np.subtract(drawn, frames, dtype=float)).mean() < 8  # compressed twice


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


class Camera:
    """Gives the frames of a video, then the user's Ctrl-C; like some, knows no frame rate."""

    def __init__(self, path: Path | None, num_frames: int) -> None:
        self.video = cv2.VideoCapture(str(path)) if path else None
        self.left = num_frames

    def isOpened(self) -> bool:  # noqa: N802
        return self.video is not None

    def read(self) -> tuple[bool, np.ndarray]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        assert self.video is not None
        return self.video.read()

    def get(self, _: int) -> float:
        return -1.0

    def release(self) -> None:
        self.left = -1


def test_webcam_until_ctrl_c(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = Camera(folder / "street.mp4", num_frames=4)
    cameras = {0: camera}
    monkeypatch.setattr(cv2, "VideoCapture", cameras.__getitem__)
    words = ["--webcam", "--output", tmp_path, "--json", tmp_path / "rows.json"]
    assert command(folder, *words) == 0
    assert camera.left == -1
    monkeypatch.undo()
    drawn, fps = read_video(tmp_path / "webcam.mp4")
    assert (len(drawn), fps) == (4, 30.0)
    rows = json.loads((tmp_path / "rows.json").read_text())
    frames, _ = read_video(folder / "street.mp4")
    check_rows(rows, detect(folder, frames[:4]), ["webcam"] * 4)


def test_unreadable_images_are_named_and_passed_over(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(folder / "images" / "001.png").save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "b.png").read_bytes()[:200])
    words = ["--input", tmp_path, "--json", tmp_path / "rows.json"]
    assert command(folder, *words, "--output", tmp_path / "drawn") == 1
    error = capsys.readouterr().err
    assert f"error: {tmp_path / 'a.png'} cannot be read as an image" in error
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["b.png"]
    # The image id is the number among the inputs, whether the others can be read or not.
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {(row["image_id"], row["file_name"]) for row in rows} == {(1, str(tmp_path / "b.png"))}


def test_images_that_cannot_be_used_do_not_stop_the_others(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = ["1x5000.png", "5000x1.png", "3x2000.png", "pipe.png", "text.png"]
    for name in bad[:3]:
        width, height = map(int, name.removesuffix(".png").split("x"))
        Image.new("RGB", (width, height)).save(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("text")
    Image.open(folder / "images" / "001.png").save(tmp_path / "z.png")
    words = ["--input", tmp_path, "--json", tmp_path / "rows.json"]
    assert command(folder, *words, "--output", tmp_path / "drawn") == 1
    errors = capsys.readouterr().err.splitlines()
    for name in bad:
        assert sum(line.startswith(f"error: {tmp_path / name}") for line in errors) == 1, name
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["z.png"]
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["file_name"] for row in rows} == {str(tmp_path / "z.png")}


def test_class_names_are_not_formulas(folder: Path, tmp_path: Path) -> None:
    categories = [{"id": 4, "name": r"$\frac{1}{$"}, {"id": 9, "name": "US$ and A$"}]
    (tmp_path / "own.json").write_text(json.dumps({"categories": categories}))
    words = ["--input", folder / "images" / "000.png", "--output", tmp_path]
    assert command(folder, *words, "--classes-from", tmp_path / "own.json") == 0
    assert (tmp_path / "000.png").is_file()


def test_a_picture_that_cannot_be_drawn_is_named(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(detections: Detections) -> Image.Image:
        raise ValueError("no such colour")

    monkeypatch.setattr(Detections, "draw", fail)
    words = ["--input", folder / "images", "--output", tmp_path, "--json", tmp_path / "rows.json"]
    assert command(folder, *words) == 1
    assert "000.png cannot be drawn: no such colour" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "rows.json").read_text())) > 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(
    value: float, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(folder / "model.pth", weights_only=True)["model"]
    state["roi_heads.box_predictor.cls_score.bias"][1] = value
    torch.save({"model": state}, tmp_path / "bad.pth")
    words = ["--input", folder / "images", "--json", tmp_path / "rows.json"]
    assert command(folder, *words, weights=tmp_path / "bad.pth") == 2
    error = capsys.readouterr().err
    assert "bad.pth' has NaN or infinite values in 1 entries, among them roi_heads.box_pr" in error
    assert not (tmp_path / "rows.json").exists()


def test_mistakes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    photo = folder / "images" / "000.png"
    Image.open(photo).save(tmp_path / "000.png")
    video, output = folder / "street.mp4", tmp_path / "drawn"
    given = ["--input", photo]
    source: list[Any]
    for source, options, message in (
        (["--input", tmp_path / "*.gif"], [], "*.gif' is not a file or folder, and matches none"),
        ([*given, tmp_path / "empty"], [], "no image (.bmp, "),
        ([*given, "MODEL.DEVICE"], [], "KEY VALUE pairs go behind another option"),
        (["--video-input", tmp_path / "none.mp4"], [], "none.mp4'"),
        (["--video-input", tmp_path / "text.mp4"], [], "cannot be opened as a video"),
        (["--input", tmp_path / "000.png"], ["--output", tmp_path], "would replace it"),
        ([*given, tmp_path / "000.png"], [], "would both be drawn as"),
        (given, ["--output", photo], "is not a folder"),
        (["--video-input", video], ["--output", folder], "would replace"),
        (given, ["--show"], "--show: there is no screen"),
        (given, ["--classes-from", "none.json"], "file 'none.json'"),
        (given, ["MODEL.DEVICES", "cpu"], "MODEL.DEVICES"),
        (given, ["MODEL.FPN.OUT_CHANNELS", 8], "of another shape"),
        (given, ["INPUT.FORMAT", "L"], "allowed with INPUT.FORMAT L"),
    ):
        assert command(folder, *source, "--output", output, *options) == 2, message
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
    assert not (tmp_path / "drawn").exists()


@pytest.mark.parametrize("weights", ["", "none.pth"])
def test_no_weights(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: str
) -> None:
    (tmp_path / "config.yaml").write_text(toy(tmp_path).dump())
    argv = ["--config-file", str(tmp_path / "config.yaml"), "--json", str(tmp_path / "x.json")]
    argv += ["--input", str(folder / "images"), "--", "MODEL.WEIGHTS", weights]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert (weights or "MODEL.WEIGHTS is empty: name a trained model") in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "x"], "nothing to do: give --output, --json or --show"),
        (["--input", "x", "--webcam", "--show"], "not allowed with"),
        (["--show"], "one of the arguments --input --video-input --webcam is required"),
        (["--webcam", "--show", "--confidence-threshold", "50"], "is 50.0; allowed: 0 to 1"),
    ],
)
def test_command_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--config-file", "Demo/shapes.yaml", *words])
    assert message in capsys.readouterr().err


def test_no_camera(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: Camera(None, 0))
    assert command(folder, "--webcam", "--json", folder / "x.json") == 2
    assert "--webcam: camera 0 cannot be opened" in capsys.readouterr().err


def test_a_detector_of_proposals_only_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = toy_cfg(tmp_path, ["MODEL.META_ARCHITECTURE", "ProposalNetwork"])
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    argv = ["--config-file", str(tmp_path / "config.yaml"), "--json", str(tmp_path / "x.json")]
    argv += ["--input", str(folder / "images"), "--", "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    assert main(argv) == 2
    assert "'ProposalNetwork' gives proposals" in capsys.readouterr().err


@pytest.mark.slow
def test_window(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[np.ndarray] = []
    monkeypatch.setitem(os.environ, "DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: shown.append(picture))
    keys = iter([-1, ord("x"), ord("q")])
    monkeypatch.setattr(cv2, "waitKey", lambda _: next(keys))
    video = folder / "street.mp4"
    assert command(folder, "--video-input", video, "--show", "--output", tmp_path) == 0
    drawn, _ = read_video(tmp_path / "street.mp4")
    assert len(shown) == len(drawn) == 3
    # Shown and written alike, but for the compression.
    assert np.abs(shown[0].astype(int) - drawn[0]).mean() < 12

    keys = iter([ord("x"), 27])
    assert command(folder, "--input", folder / "images", "--show") == 0
    assert len(shown) == 5


def test_a_window_without_support_in_opencv(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported(*_: Any) -> None:
        raise cv2.error("The function is not implemented")

    monkeypatch.setitem(os.environ, "DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", unsupported)
    assert command(folder, "--input", folder / "images", "--show") == 2
    assert "opencv-python-headless" in capsys.readouterr().err


def test_classes_of_your_own(folder: Path, tmp_path: Path) -> None:
    categories = [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}]
    images = [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}]
    content = {"images": images, "annotations": [], "categories": categories}
    (tmp_path / "own.json").write_text(json.dumps(content))
    words = ["--input", folder / "images", "--json", tmp_path / "rows.json"]
    assert command(folder, *words, "--classes-from", tmp_path / "own.json") == 0
    photographs = [cv2.imread(str(path)) for path in sorted((folder / "images").iterdir())]
    expected = [k for found in detect(folder, photographs) for k in found.pred_classes.tolist()]
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["category_id"] for row in rows] == [(4, 9)[k] for k in expected]


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "c[1].png", "sub/d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(*patterns: str) -> list[str]:
        found = find_images([str(tmp_path / pattern) for pattern in patterns])
        return [str(path.relative_to(tmp_path)) for path in found]

    assert names("") == ["a.png", "b.JPG", "c[1].png"]
    assert names("b.JPG", "*.*") == ["b.JPG", "a.png", "c[1].png", "notes.txt"]
    assert names("**/*.webp", "c[1].png") == ["sub/d.webp", "c[1].png"]
    with pytest.raises(UsageError, match="matches none"):
        names("a.png", "*.gif")
