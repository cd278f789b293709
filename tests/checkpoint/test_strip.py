"""Weights without the state of the training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from d2_plugins.checkpoint import PluginCheckpointer
from d2_plugins.checkpoint.strip import strip_checkpoint
from d2_plugins.cli.export import main
from d2_plugins.errors import UsageError
from tests.support.training import train


@pytest.fixture
def run(tmp_path: Path, toy_data: list[Any]) -> Path:
    train(tmp_path / "run", [*toy_data, "SOLVER.MAX_ITER", 2])
    return tmp_path / "run"


def test_weights_and_classes_are_left(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = run / "model_final.pth", run / "new" / "small.pth"
    argv = ["--weights-only", "--output", str(target), "MODEL.WEIGHTS", str(source)]
    assert main(argv) == 0
    assert f"wrote {target}: " in capsys.readouterr().out
    before, after = (torch.load(path, weights_only=True) for path in (source, target))
    assert "trainer" in before
    assert after.keys() == {"model", "classes"}
    assert after["classes"] == before["classes"] == {
        "names": ["dark", "bright"], "category_ids": [1, 2],
    }  # fmt: skip
    assert after["model"].keys() == before["model"].keys()
    assert all(torch.equal(after["model"][k], before["model"][k]) for k in before["model"])
    assert target.stat().st_size < 0.7 * source.stat().st_size
    assert main(["--weights-only", "--output", str(target)]) == 2
    assert "MODEL.WEIGHTS is empty" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--output", "x.onnx"])
    assert "--config-file and --input are required" in capsys.readouterr().err


def test_mistakes(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    (tmp_path / "sub").mkdir()
    PluginCheckpointer(model, str(tmp_path)).save("a")
    for source, target, message in (
        ("a.pth", "b.onnx", "b.onnx' does not end in .pth"),
        ("a.safetensors", "b.pth", "a.safetensors' does not end in .pth"),
        ("a.pth", "sub/../a.pth", "would replace the checkpoint itself"),
        ("gone.pth", "b.pth", "MODEL.WEIGHTS: .*gone.pth"),
    ):
        with pytest.raises(UsageError, match=message):
            strip_checkpoint(tmp_path / source, tmp_path / target)
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"MODEL\.WEIGHTS: "):
        strip_checkpoint(tmp_path / "broken.pth", tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()
    strip_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth")
    assert torch.equal(torch.load(tmp_path / "b.pth")["model"]["bias"], model.bias)
