"""The adaptive convolution of Cascade RPN: a 3 x 3 convolution that samples at each cell's box.

The nine taps at a cell are the centre, the corners and the edge midpoints of the cell's box
(:mod:`.geometry`), sampled bilinearly, and zero outside of the map. The boxes get no gradient.
(Vu et al., NeurIPS 2019, section 3.2.)

There are three implementations with the same results:

- ``reference`` passes the taps as offsets to :func:`torchvision.ops.deform_conv2d`. It runs on
  every device, and is used in tracing, ``torch.export`` and ONNX, since exporters know that
  operator.
- ``gather`` is for the CPU, see :mod:`.gather_cpu`.
- ``triton`` is for CUDA devices, see :mod:`.triton_cuda`. It does not support float64.

Shape shorthand:

    N: number of images
    C_in, C_out: numbers of channels
    H, W: height and width of the feature map
"""

import functools
import os
import warnings
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from . import operators
from .geometry import deform_offsets

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
    """Convolve with 3 x 3 taps at the centre, the corners and the edge midpoints of a box per cell.

    A box of 2 x 2 cells centred on its cell gives ``conv2d(feature, weight, bias, padding=1)``.
    Boxes may lie partly or entirely outside of the map. They may be empty (then all taps coincide)
    or inverted (then the taps are mirrored). A box with a coordinate that is not finite samples
    nothing: the result at its cell is the bias.

    Positions and interpolation are in float32 (float64 for a float64 feature) even if the feature
    has a lower precision. Under autocast, feature and weight are cast as for a convolution, the
    boxes are not.

    Args:
        feature: (N, C_in, H, W) in any memory format; channels-last saves a copy.
        boxes: (N, H * W, 4) XYXY in image pixels, one box per cell, row-major. No gradient.
        weight: (C_out, C_in, 3, 3).
        bias: (C_out,) or None.
        stride: number of image pixels per feature cell.
        backend: implementation. "auto" selects "gather" on the CPU; "triton" on CUDA devices of the
            Ampere generation or later, if Triton works; and otherwise "reference", also while the
            model is traced or exported.

    Returns:
        (N, C_out, H, W). Channels-last in memory except from "reference". The convolutions that
        follow are faster for it, but need ``reshape`` instead of ``view``.

    Raises:
        ValueError: shapes or dtypes do not fit, or the backend is unknown or does not support this
            input.
        RuntimeError: the backend is not installed.
    """
    if _autocast_enabled(feature) and feature.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(feature.device.type)
        feature, weight = feature.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if not torch.jit.is_tracing():  # shapes are tensors then, and comparing them warns
        _check_inputs(feature, boxes, weight, bias, stride)
    boxes = boxes.detach().to(torch.promote_types(feature.dtype, torch.float32))
    backend = _choose_backend(backend, feature)
    if backend == "gather":
        return operators.gather(feature, boxes, weight, bias, float(stride))
    if backend == "triton":
        return operators.triton(feature, boxes, weight, bias, float(stride))
    return _reference(feature, boxes, weight, bias, stride)


def _check_inputs(
    feature: Tensor, boxes: Tensor, weight: Tensor, bias: Tensor | None, stride: float
) -> None:
    """Raise ValueError if a shape, a dtype or the stride does not fit, with what is allowed."""
    if stride <= 0:
        raise ValueError(f"stride must be positive, not {stride}")
    if feature.dim() != 4 or 0 in feature.shape[1:]:
        raise ValueError(
            f"feature must have shape (N, C, H, W) with no C, H, W of 0, not {tuple(feature.shape)}"
        )
    images, channels, height, width = feature.shape
    if boxes.shape != (images, height * width, 4):
        raise ValueError(
            f"boxes must have shape (N, H * W, 4) = {(images, height * width, 4)} for a feature "
            f"of shape {tuple(feature.shape)}, not {tuple(boxes.shape)}"
        )
    if weight.dim() != 4 or weight.shape[1:] != (channels, 3, 3):
        raise ValueError(
            f"weight must have shape (C_out, {channels}, 3, 3), not {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"bias must have shape ({weight.shape[0]},), not {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != feature.dtype:
            raise ValueError(
                f"{name} must have the dtype of feature, {feature.dtype}, not {tensor.dtype}"
            )


def _autocast_enabled(feature: Tensor) -> bool:
    device = feature.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _exporting() -> bool:
    """Return True while a tracer or exporter is recording; it would not know our operators."""
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting()


@torch.compiler.assume_constant_result
def _supports_triton(device: int) -> bool:
    """Return True if a CUDA device has the tensor cores that the kernels need, and Triton works."""
    return torch.cuda.get_device_capability(device) >= (8, 0) and _triton_works(device)


@functools.cache
def _triton_works(device: int) -> bool:
    """Try Triton once per process and device; warn and return False if it does not work."""
    try:
        from .triton_cuda import probe

        probe(torch.device("cuda", device))
    # A missing compiler, header or driver, or an old version: Triton raises many types.
    except Exception as error:
        warnings.warn(
            f"Triton does not work here ({type(error).__name__}: {error}); adaptive convolutions "
            "use the slower backend 'reference'. Triton needs gcc or clang and Python's headers.",
            stacklevel=2,
        )
        return False
    return True


def _choose_backend(backend: Backend, feature: Tensor) -> Backend:
    """Resolve "auto", and raise for a backend that cannot run; see :func:`adaptive_conv2d`."""
    device, double = feature.device.type, feature.dtype == torch.float64
    if backend == "auto":
        if _exporting():
            return "reference"
        if device == "cuda" and _HAS_TRITON and not double:
            return "triton" if _supports_triton(feature.device.index) else "reference"
        return "gather" if device == "cpu" else "reference"
    if backend not in _BACKENDS:
        raise ValueError(f"backend is {backend!r}; allowed: {', '.join(_BACKENDS)}")
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
    """Convolve with torchvision, in float32: it lacks bfloat16, and float16 on the CPU."""
    offsets = deform_offsets(boxes, stride, (feature.shape[2], feature.shape[3]))
    dtype = boxes.dtype
    bias = None if bias is None else bias.to(dtype)
    # Only entered if needed, to keep it out of exported graphs.
    autocast = _autocast_enabled(feature)
    with torch.autocast(feature.device.type, enabled=False) if autocast else nullcontext():
        out = deform_conv2d(feature.to(dtype), offsets, weight.to(dtype), bias, padding=1)
    return out.to(feature.dtype)


class AdaptiveConv2d(nn.Module):
    """Module of :func:`adaptive_conv2d` that holds the weight and the bias.

    All levels of a pyramid may share one module, so the stride is an argument of :meth:`forward`.
    Weights start as N(0, 0.01) and the bias at zero, as in Cascade RPN.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = False,
        backend: Backend = "auto",
    ) -> None:
        """Initialize the parameters.

        Args:
            in_channels: number of input channels C_in.
            out_channels: number of output channels C_out.
            bias: add a learned bias.
            backend: see :func:`adaptive_conv2d`.

        Raises:
            ValueError: the backend is unknown.
        """
        super().__init__()
        if backend not in _BACKENDS:
            raise ValueError(f"backend is {backend!r}; allowed: {', '.join(_BACKENDS)}")
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
        """Convolve (N, C_in, H, W) at (N, H * W, 4) to (N, C_out, H, W), see the function."""
        return adaptive_conv2d(
            feature, boxes, self.weight, self.bias, stride=stride, backend=self.backend
        )

    def extra_repr(self) -> str:
        """Return the arguments as text, for ``repr``."""
        text = f"{self.in_channels}, {self.out_channels}, bias={self.bias is not None}"
        return text if self.backend == "auto" else f"{text}, backend={self.backend!r}"
