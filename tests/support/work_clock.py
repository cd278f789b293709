"""A clock that shows multiply-adds instead of seconds, so that ratios of times are exact."""

from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
import torchvision  # noqa: F401  # registers its operators
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from d2_plugins.benchmark import timing
from d2_plugins.layers.adaptive_conv import operators  # noqa: F401  # registers our operators

# Multiply-adds of the forward and of the backward operator, in units of the convolution's forward.
ADAPTIVE = 2, 7
DEFORMABLE = 10, 53


def _convolution(units: int, feature: int, weight: int) -> Callable[..., int]:
    """The formula of a 3 x 3 convolution; the two numbers are positions of arguments."""

    def flops(*args: Any, out_val: Any) -> int:
        images, _, height, width = args[feature].shape
        return 2 * units * images * height * width * prod(args[weight].shape)

    return flops


def _roi_align(*_: Any, out_val: Tensor) -> int:
    return 8 * out_val.numel()


_OURS, _VISION = torch.ops.d2_plugins, torch.ops.torchvision
_FORMULAS = flop_registry | {
    _OURS.adaptive_conv2d_gather: _convolution(ADAPTIVE[0], 0, 2),
    _OURS.adaptive_conv2d_gather_backward: _convolution(ADAPTIVE[1], 1, 3),
    _VISION.deform_conv2d: _convolution(DEFORMABLE[0], 0, 1),
    _VISION._deform_conv2d_backward: _convolution(DEFORMABLE[1], 1, 2),
    _VISION.roi_align: _roi_align,
}


class _Counter(TorchDispatchMode):
    """PyTorch's formulas and ours; FlopCounterMode itself does not run ``autograd.grad``."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in _FORMULAS:
            self.flops += _FORMULAS[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


class WorkClock:
    """Replacement for :func:`d2_plugins.benchmark.timing.elapsed` that records what it measures.

    Attributes:
        work: multiply-adds of each measured call.
        results: result of each measured call.
    """

    def __init__(self) -> None:
        self.work: list[float] = []
        self.results: list[Any] = []

    def __call__(self, run: Callable[[], object], *_: object) -> float:
        with _Counter() as counter:
            self.results.append(run())
        self.work.append(counter.flops / 2)
        return self.work[-1]


@pytest.fixture
def work_clock(monkeypatch: pytest.MonkeyPatch) -> WorkClock:
    """Let the benchmarks measure multiply-adds."""
    clock = WorkClock()
    monkeypatch.setattr(timing, "elapsed", clock)
    return clock
