"""d2-plugins visualize-proposals: the command writes the picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2_plugins.cli.visualize_proposals import main
from tests.support.proposal_models import crpn_cfg, lively


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = crpn_cfg(tmp_path)
    torch.save({"model": lively(cfg).state_dict()}, tmp_path / "weights.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    picture = tmp_path / "picture.png"
    status = main(
        [
            *("--config-file", str(tmp_path / "config.yaml")),
            *("--input", str(tmp_path / "photo.png"), "--output", str(picture)),
            *("--num-cells", "2", "MODEL.WEIGHTS", str(tmp_path / "weights.pth")),
        ]
    )
    assert status == 0
    assert f"wrote {picture}" in capsys.readouterr().out
    width, height = Image.open(picture).size
    assert width > 3 * height / 2  # four panels side by side
