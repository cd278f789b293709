"""Triton kernels of the adaptive convolution on the simulated device."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch import Tensor

from d2_plugins.layers.adaptive_conv import gather_cpu, triton_cuda
from tests.support.simulated_device import DeviceError, DeviceTensor, SimulatedCuda


@contextlib.contextmanager
def emulated_triton() -> Iterator[None]:
    """Replace the tuned kernels; each call counts as a launch.

    With ``TRITON_INTERPRET=1`` Triton's interpreter computes the numbers, otherwise the CPU's
    implementation of the adaptive convolution.
    """
    with contextlib.ExitStack() as stack:
        for compute in (_forward, _feature_gradient, _weight_gradient):
            name = f"tuned{compute.__name__}"
            kernel = _EmulatedKernel(getattr(triton_cuda, name), compute)
            stack.enter_context(mock.patch.object(triton_cuda, name, kernel))
        stack.enter_context(mock.patch.object(triton_cuda, "probe"))
        yield


class _EmulatedKernel:
    def __init__(self, kernel: Any, compute: Any) -> None:
        self.kernel, self.compute = kernel, compute

    def __getitem__(self, grid: Any) -> Any:
        def launch(**named: Any) -> None:
            SimulatedCuda.current.note("launches", f"triton{self.compute.__name__}")
            for key, value in named.items():
                if isinstance(value, Tensor) and not isinstance(value, DeviceTensor):
                    raise DeviceError(f"Triton received a host tensor, {key}")
            named = {key: getattr(value, "elem", value) for key, value in named.items()}
            if os.environ.get("TRITON_INTERPRET") == "1":
                self.kernel[grid](**named)
                return
            images, height, width = len(named["boxes"]), named["height"], named["width"]
            for key in {"feature", "grad"} & named.keys():  # (P, C) -> (N, C, H, W)
                named[key] = named[key].view(images, height, width, -1).permute(0, 3, 1, 2)
            self.compute(shape=(images, named["channels"], height, width), **named)

        return launch


def _forward(feature, boxes, weight, bias, out, stride, **_):
    result = gather_cpu.forward(feature, boxes, weight.permute(3, 2, 0, 1), bias, stride)
    out.copy_(result.permute(0, 2, 3, 1))


def _feature_gradient(grad, boxes, weight, grad_feature, stride, shape, **_):
    like, weight = grad.new_empty(shape), weight.permute(2, 3, 0, 1)
    result, _ = gather_cpu.backward(grad, like, boxes, weight, stride, True, False)
    grad_feature.add_(result.permute(0, 2, 3, 1))


def _weight_gradient(grad, feature, boxes, grad_weight, stride, **_):
    like = grad_weight.permute(3, 2, 0, 1).to(feature.dtype)
    _, result = gather_cpu.backward(grad, feature, boxes, like, stride, False, True)
    grad_weight.add_(result.permute(2, 3, 1, 0))
