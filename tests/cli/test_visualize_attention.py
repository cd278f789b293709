from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from matplotlib.image import imread
from PIL import Image

from d2_plugins.cli.visualize_attention import main
from d2_plugins.visualization.inverted_attention import attention_config, explain_regions, shade
from tests.support.roi_heads import make_detector_cfg


@pytest.mark.parametrize(
    "name",
    ["StandardROIHeads", "CascadeROIHeads", "DoubleHeadROIHeads", "CascadeDoubleHeadROIHeads"],
)
def test_explained_regions_are_the_detections(name: str) -> None:
    cfg = make_detector_cfg(name)
    torch.manual_seed(0)
    stock = build_model(cfg).eval()
    model = build_model(attention_config(cfg)).eval()
    model.load_state_dict(stock.state_dict())
    image = torch.rand(3, 96, 128) * 255
    regions = explain_regions(model, image, num_regions=5)
    with torch.no_grad():
        (detections,) = stock.inference([{"image": image}], do_postprocess=False)
    assert len(regions) == 5
    for region, box, label in zip(
        regions, detections.pred_boxes.tensor, detections.pred_classes.tolist(), strict=False
    ):
        assert torch.equal(region.box, box)
        assert region.label == label
        threshold = region.attention.flatten().sort(descending=True).values[18]
        assert torch.equal(region.hidden, (region.attention > threshold).float())
        assert region.hidden.any()
        assert region.prob_before != region.prob_after
        assert 0 < region.prob_after < 1
    # Nothing was left behind in the model.
    with torch.no_grad():
        (after,) = model.inference([{"image": image}], do_postprocess=False)
    assert torch.equal(after.scores, detections.scores)


def test_shade_veils_hidden_places_only() -> None:
    pixels = np.full((14, 21, 3), 200, np.uint8)
    hidden = torch.zeros(7, 7)
    hidden[2, 5] = 1
    hidden[6, 0] = 0.5
    expected = pixels.copy()
    expected[4:6, 15:18] = 139
    expected[12:14, 0:3] = 169
    assert np.array_equal(shade(pixels, hidden), expected)


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
