"""d2-plugins plot-runs: the command writes the picture, and its messages."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2_plugins.cli.plot_runs import main
from tests.support.runs import two_runs


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return two_runs(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_command(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    picture = tmp_path / "new" / f"runs{suffix}"
    argv = [*map(str, folders), str(folders[0]), "--metrics", "bbox/AP*", "lr", "loss_cls"]
    assert main([*argv, "--smooth", "0.5", "--output", str(picture)]) == 0
    out = capsys.readouterr().out
    assert f"wrote {picture}: bbox/AP, bbox/AP50, lr, loss_cls of plain, flagship" in out
    if suffix == ".png":
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        assert pixels.shape[1] > pixels.shape[0] > 500
        colours = {tuple(c) for c in pixels.reshape(-1, 3)}
        assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0)} <= colours
    else:
        assert "flagship" in picture.read_text()


def test_mistakes(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    good = str(folders[0])
    for words, message in (
        ([good, "no_such_folder"], "no_such_folder"),
        ([good, str(tmp_path / "empty")], "empty has no metrics.json"),
        ([good, "--metrics", "bbox/APx"], "no run has 'bbox/APx'. Nearest: bbox/AP"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
    with pytest.raises(SystemExit, match="2"):
        main([good, "--smooth", "1"])
    assert "--smooth is 1.0; allowed: 0 to below 1" in capsys.readouterr().err
    (tmp_path / "empty" / "metrics.json").write_text('{"iteration": 3, "lr": 1}')
    assert main([str(tmp_path / "empty")]) == 2
    assert "no losses and no APs; --metrics of lr" in capsys.readouterr().err
