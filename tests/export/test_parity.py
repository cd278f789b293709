"""The comparison sees what it should, and the tool fails when it does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import Tensor

from d2_plugins import model_zoo
from d2_plugins.cli.export import main
from d2_plugins.export import compare
from tests.support.export_models import PLAIN, SMALL, image, small_model


def detections() -> tuple[Tensor, ...]:
    """Boxes, scores, classes and masks."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 5, 30, 15]])
    scores = torch.tensor([0.9, 0.8, 0.8])
    return boxes, scores, torch.tensor([0, 1, 1]), torch.full((3, 1, 2, 2), 0.5)


def expected() -> Instances:
    boxes, scores, classes, masks = detections()
    return Instances(
        (50, 50), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes, pred_masks=masks
    )


def test_order_does_not_matter() -> None:
    outputs = [x[[2, 0, 1]] for x in detections()]
    difference = compare(expected(), outputs)
    assert difference.within(box=0, score=0)
    assert (difference.detections, difference.missing, difference.extra) == (3, 0, 0)


def test_differences_are_measured() -> None:
    boxes, scores, classes, masks = detections()
    boxes[2, 3] += 0.25
    scores[0] -= 0.125
    masks[1, 0, 0, 1] += 0.375
    difference = compare(expected(), [boxes, scores, classes, masks])
    assert (difference.box, difference.score, difference.mask) == (0.25, 0.125, 0.375)
    assert difference.within(box=0.25, score=0.375)
    assert not difference.within(box=0.24, score=0.375)
    assert not difference.within(box=0.25, score=0.374)
    assert compare(expected(), [boxes, scores, classes]).mask == 0


def test_every_detection_needs_its_own_counterpart_of_its_class() -> None:
    outputs = detections()
    outputs[2][1] = 0  # now two boxes on the same place of class 0, one of class 1
    difference = compare(expected(), outputs)
    assert (difference.missing, difference.extra) == (1, 1)
    assert not difference.within(box=1e9, score=1e9)
    assert "1 missing, 1 extra" in str(difference)
    fewer = compare(expected(), [x[:1] for x in detections()])
    assert (fewer.missing, fewer.extra, fewer.box) == (2, 0, 0)
    more = compare(expected()[:1], detections())
    assert (more.missing, more.extra) == (0, 2)
    none = compare(expected(), [x[:0] for x in detections()])
    assert (none.missing, none.extra, none.box) == (3, 0, 0)


@pytest.fixture
def tool(tmp_path: Path) -> Callable[..., int]:
    """The tool's main, on a small model and a photograph."""
    cfg = model_zoo.get_config(PLAIN)
    cfg.merge_from_list(list(SMALL))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": small_model(PLAIN).state_dict()}, tmp_path / "weights.pth")
    pixels = image(100, 150).numpy().transpose(1, 2, 0).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")

    def run(*arguments: str) -> int:
        return main(
            [
                *("--config-file", str(tmp_path / "config.yaml")),
                *("--input", str(tmp_path / "photo.png")),
                *arguments,
                *("MODEL.WEIGHTS", str(tmp_path / "weights.pth")),
            ]
        )

    return run


def test_tool(tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.ts"
    assert tool("--output", str(path)) == 0
    assert f"{path}, 128 x 85: same, " in capsys.readouterr().out
    assert tool("--output", str(path), "--box-tolerance", "-1") == 1
    assert "DIFFERENT" in capsys.readouterr().out
    # An image without detections proves nothing.
    assert tool("--output", str(path), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0") == 1
    assert "NOTHING FOUND: lower MODEL.ROI_HEADS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "model.pb"), "model.pb: the suffix says the format"),
        (("--output", "a.ts", "--input", "gone.jpg"), "gone.jpg"),
        (("--output", "a.ts", "MODEL.META_ARCHITECTURE", "ProposalNetwork"), "cannot be exported"),
    ],
)
def test_mistakes(
    tool: Callable[..., int],
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tool(*arguments) == 2
    assert message in capsys.readouterr().err


def test_missing_weights(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights.pth").unlink()
    assert tool("--output", str(tmp_path / "a.ts")) == 2
    assert "weights.pth" in capsys.readouterr().err
