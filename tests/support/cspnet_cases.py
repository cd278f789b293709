"""Models and measures shared by the CSPNet tests."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from d2_plugins.modeling.backbone import CSPNet
from tests.support.helpers import randomise_norms

SMALL = {"width_multiplier": 0.25, "depth_multiplier": 0.34}
RES = ("res2", "res3", "res4", "res5")


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(build: Callable[..., nn.Module], **options: object) -> nn.Module:
    """Build a network without weights, which is fast and enough to count parameters."""
    with torch.device("meta"):
        return build(**options)


def timm_model(name: str, **options: object) -> nn.Module:
    """Build a timm model with random weights and norms, in eval mode."""
    timm = pytest.importorskip("timm")
    return randomise_norms(timm.create_model(name, pretrained=False, **options)).eval()


def like(state: dict[str, Tensor], **options: object) -> CSPNet:
    """Build a CSPNet from ``options`` that shares the tensors of ``state``, in eval mode."""
    ours = on_meta(CSPNet, **options)
    ours.load_state_dict(state, strict=True, assign=True)
    return ours.eval()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()
