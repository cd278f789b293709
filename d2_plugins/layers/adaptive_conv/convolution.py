"""The adaptive convolution of Cascade RPN: a 3 x 3 convolution that samples at each cell's box.

The nine taps at a cell are the centre, the corners and the edge midpoints of the cell's box
(:mod:`.geometry`), sampled bilinearly and zero outside of the map. No gradient goes
into the boxes. (Vu et al., NeurIPS 2019, section 3.2.)

Three implementations of the same numbers:

- ``reference``: the taps as offsets of :func:`torchvision.ops.deform_conv2d`. Every device; also
  what tracing, ``torch.export`` and ONNX see, since exporters know that operator.
- ``gather``: on the CPU, :mod:`.gather_cpu`.
- ``triton``: on CUDA devices, :mod:`.triton_cuda`. Not for float64.

Shapes: N images, C channels, H, W of the feature map.
"""

import os
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from . import operators
from .geometry import check_inputs, deform_offsets

__all__ = ["AdaptiveConv2d", "Backend", "adaptive_conv2d"]

Backend = Literal["auto", "reference", "gather", "triton"]
_BACKENDS = ("auto", "reference", "gather", "triton")
_HAS_TRITON = find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels on CPU tensors


def adaptive_conv2d(
    feature: Tensor,
    boxes: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: float,
    backend: Backend = "auto",
) -> Tensor:
    """3 x 3 convolution whose taps at each cell are the centre, corners and edges of a box.

    A box of 2 x 2 cells centred on its cell gives ``conv2d(feature, weight, bias, padding=1)``.
    Boxes may reach out of the map or lie outside, and may be empty (then all taps coincide) or
    inverted (then the taps are mirrored). A box with a coordinate that is not finite samples
    nothing: its cell gets the bias.

    Positions and interpolation are in float32 (float64 for a float64 feature) whatever the
    feature's precision. Under autocast, feature and weight are cast as for a convolution, the boxes
    are not.

    Args:
        feature: (N, C_in, H, W), in any memory format; channels-last saves a copy.
        boxes: (N, H * W, 4) XYXY in image pixels, one box per cell, row-major. No gradient.
        weight: (C_out, C_in, 3, 3).
        bias: (C_out,) or None.
        stride: image pixels per feature cell.
        backend: "auto" takes "gather" on CPU, "triton" on CUDA devices from Ampere on where Triton
            is installed, and "reference" otherwise and while the model is traced or exported.

    Returns:
        (N, C_out, H, W). Channels-last in memory except from "reference"; convolutions behind it
        are faster for that, but use ``reshape`` and not ``view``.

    Raises:
        ValueError: shapes or dtypes do not fit, or the backend is unknown or not for this input.
        RuntimeError: the backend is not installed.
    """
    if _autocast_enabled(feature) and feature.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(feature.device.type)
        feature, weight = feature.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if not torch.jit.is_tracing():  # where shapes are tensors, and every look at one warns
        check_inputs(feature, boxes, weight, bias, stride)
    boxes = boxes.detach().to(torch.promote_types(feature.dtype, torch.float32))
    backend = _choose_backend(backend, feature)
    if backend == "gather":
        return operators.gather(feature, boxes, weight, bias, float(stride))
    if backend == "triton":
        return operators.triton(feature, boxes, weight, bias, float(stride))
    return _reference(feature, boxes, weight, bias, stride)


def _autocast_enabled(feature: Tensor) -> bool:
    device = feature.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _exporting() -> bool:
    """Whether a tracer or exporter is recording, which our own operators would stop."""
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting()


@torch.compiler.assume_constant_result
def _has_tensor_cores(device: int) -> bool:
    """Whether a CUDA device is of a generation that the Triton kernels are made for."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _choose_backend(backend: Backend, feature: Tensor) -> Backend:
    """Resolve "auto" and refuse what cannot run; see :func:`adaptive_conv2d`."""
    device, double = feature.device.type, feature.dtype == torch.float64
    if backend == "auto":
        if _exporting():
            return "reference"
        if device == "cuda" and _HAS_TRITON and not double:
            return "triton" if _has_tensor_cores(feature.device.index) else "reference"
        return "gather" if device == "cpu" else "reference"
    if backend not in _BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: allowed are {', '.join(_BACKENDS)}")
    if backend == "gather" and device != "cpu":
        raise ValueError(f"backend 'gather' is for CPU tensors, not for {device}")
    if backend == "triton":
        if not _HAS_TRITON:
            raise RuntimeError(
                "backend 'triton' needs Triton, which comes with PyTorch's CUDA wheels for Linux"
            )
        if device != "cuda" and not _INTERPRETED:
            raise ValueError(f"backend 'triton' is for CUDA tensors, not for {device}")
        if double:
            raise ValueError("backend 'triton' has no float64: use 'reference'")
    return backend


def _reference(
    feature: Tensor, boxes: Tensor, weight: Tensor, bias: Tensor | None, stride: float
) -> Tensor:
    """By torchvision, which has no bfloat16, and no half precision nor autocast on the CPU."""
    offsets = deform_offsets(boxes, stride, (feature.shape[2], feature.shape[3]))
    dtype = boxes.dtype
    bias = None if bias is None else bias.to(dtype)
    # Entered only if needed: an exported graph should not carry it.
    autocast = _autocast_enabled(feature)
    with torch.autocast(feature.device.type, enabled=False) if autocast else nullcontext():
        out = deform_conv2d(feature.to(dtype), offsets, weight.to(dtype), bias, padding=1)
    return out.to(feature.dtype)


class AdaptiveConv2d(nn.Module):
    """:func:`adaptive_conv2d` with its weight, which all levels of a pyramid may share.

    The stride is therefore an argument of :meth:`forward`. Weights start as N(0, 0.01), the bias
    at zero, as in Cascade RPN.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = False,
        backend: Backend = "auto",
    ) -> None:
        """Args:
        in_channels: C_in.
        out_channels: C_out.
        bias: add a learned bias.
        backend: see :func:`adaptive_conv2d`.
        """
        super().__init__()
        if backend not in _BACKENDS:
            raise ValueError(f"unknown backend {backend!r}: allowed are {', '.join(_BACKENDS)}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from N(0, 0.01); zero the bias."""
        nn.init.normal_(self.weight, std=0.01)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, feature: Tensor, boxes: Tensor, *, stride: float) -> Tensor:
        """(N, C_in, H, W) and (N, H * W, 4) -> (N, C_out, H, W), see :func:`adaptive_conv2d`."""
        return adaptive_conv2d(
            feature, boxes, self.weight, self.bias, stride=stride, backend=self.backend
        )

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        text = f"{self.in_channels}, {self.out_channels}, bias={self.bias is not None}"
        return text if self.backend == "auto" else f"{text}, backend={self.backend!r}"
