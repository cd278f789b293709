"""Helpers of several test files."""

import os
from pathlib import Path

import pytest
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

REPO = Path(__file__).resolve().parents[2]


def shared_path(relative: str) -> Path:
    """Return the path of a reference file next to the checkout; skip the test if it is missing."""
    root = Path(os.environ.get("D2_PLUGINS_SHARED", REPO.parent / "shared"))
    path = root / relative
    if not path.exists():
        pytest.skip(f"reference data '{relative}' is not available (set D2_PLUGINS_SHARED)")
    return path


def randomise_norms(model: nn.Module) -> nn.Module:
    """Statistics and weights as after training: with the initial ones most mistakes are silent."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model
