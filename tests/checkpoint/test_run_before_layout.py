"""A run that commit c1ae2bf wrote, before the package's files were moved, continues after it.

tests/fixtures/run_before_layout holds 2 iterations of a toy flagship (CSPNet with ECA, Cascade
RPN, Double-Head, Inverted Attention) on the toy dataset, and the weights after the third iteration
as that commit computed them.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from safetensors.torch import load_file

from d2_plugins.cli.train import main
from d2_plugins.model_zoo import read_config

RUN = Path(__file__).parents[1] / "fixtures" / "run_before_layout"


def test_its_weights_fill_the_model() -> None:
    model = build_model(read_config(str(RUN / "config.yaml")))
    weights = torch.load(RUN / "model_0000001.pth", weights_only=True)["model"]
    model.load_state_dict(weights, strict=True)
    assert set(load_file(RUN / "after_iteration_3.safetensors")) == set(weights)


@pytest.mark.usefixtures("toy_data")
def test_it_resumes_to_the_weights_that_its_own_code_gives(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    options: list[Any] = ["--config-file", run / "config.yaml", "--num-gpus", 0, "--resume"]
    assert main([str(word) for word in [*options, "OUTPUT_DIR", run]]) == 0
    assert "Resuming from iteration 2 of 3" in (run / "log.txt").read_text()
    resumed = torch.load(run / "model_final.pth", weights_only=True)
    assert resumed["iteration"] == 2
    before = torch.load(run / "model_0000001.pth", weights_only=True)["model"]
    after = load_file(run / "after_iteration_3.safetensors")
    for name, value in resumed["model"].items():
        # Equal bit for bit on the processor that wrote the fixture; others round differently.
        torch.testing.assert_close(value, after[name], rtol=1e-4, atol=1e-6)
    moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert len(moved) > len(after) / 2
