"""d2-plugins visualize-attention: the command writes the picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from matplotlib.image import imread
from PIL import Image

from d2_plugins.cli.visualize_attention import main
from tests.support.roi_heads import make_detector_cfg


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A config, weights and a photograph on disk, and the command line for them."""
    cfg = make_detector_cfg("DoubleHeadROIHeads")
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    words = ["--config-file", "config.yaml", "--input", "photo.png", "--output", "attention.png"]
    words += ["--num-regions", "2", "MODEL.WEIGHTS", "model.pth"]
    return [str(tmp_path / w) if (tmp_path / w).exists() or "attention" in w else w for w in words]


def test_tool_writes_a_picture(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    assert "attention.png: 2 regions" in capsys.readouterr().out
    picture = imread(tmp_path / "attention.png")
    assert picture.shape[:2] == (572, 825)
    assert picture[..., :3].std() > 0.1


def test_tool_says_when_nothing_is_detected(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.999"]) == 1
    assert "nothing is detected in" in capsys.readouterr().out
    assert not (tmp_path / "attention.png").exists()
