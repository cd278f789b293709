"""The adaptive convolution on CUDA devices, by the kernels of :mod:`.triton_kernels`.

The feature's gradient is summed by atomic additions. Their order, and so the last bits of the
result, differ from run to run, as with torchvision's operator.

float32 products are as exact as those of PyTorch's convolutions: one TF32 product where
``torch.backends.cudnn`` allows TF32, which is its default, and otherwise three TF32 products, which
keep float32's precision on tensor cores.

The first step compiles eight kernels for each dtype and number of channels, and tunes the sizes of
their tiles; this takes from some seconds to a minute. Triton keeps both on disk, so the next run
does not repeat it. Image sizes do not matter: later steps compile nothing.

Shape shorthand:

    N: number of images
    C_in, C_out: numbers of channels
    H, W: height and width of the feature map
    P: number of cells of all images, N * H * W
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from .geometry import TAPS, empty_result
from .triton_kernels import (
    probe_kernel,
    tuned_feature_gradient,
    tuned_forward,
    tuned_weight_gradient,
)

__all__ = ["backward", "forward", "probe"]

# Number of cells that one program of the weight's gradient sums up before it adds to the others.
_CELLS_PER_SUM = 2048
# Maps with fewer cells are tuned separately, because they have few programs.
_SMALL_MAP = 4096


def probe(device: torch.device) -> None:
    """Compile and run a tiny kernel, which raises if Triton does not work.

    Triton needs a C compiler and Python's headers at its first launch.

    Args:
        device: CUDA device.

    Raises:
        Exception: of any type, from Triton, the compiler or the driver.
    """
    out = torch.zeros(1, device=device)
    with torch.cuda.device(device):
        probe_kernel[(1,)](out)
    if out.item() != 1:
        raise RuntimeError("a Triton kernel ran without effect")


def forward(
    feature: Tensor, boxes: Tensor, weight: Tensor, bias: Tensor | None, stride: float
) -> Tensor:
    """Convolve; arguments and result as of :func:`.convolution.adaptive_conv2d`.

    Returns:
        (N, C_out, H, W), channels-last in memory.
    """
    result = empty_result(feature, weight)
    out = result.permute(0, 2, 3, 1)

    def grid(tile: dict[str, int]) -> tuple[int, ...]:
        return _blocks(out, tile["block_cells"]), triton.cdiv(len(weight), tile["block_out"])

    if len(feature):
        with _on_device(feature):
            tuned_forward[grid](
                feature=_rows(feature),
                boxes=boxes.contiguous(),
                weight=weight.permute(2, 3, 1, 0).contiguous(),
                bias=bias,
                out=out,
                **_common(feature, weight, stride),
            )
    return result


def backward(
    grad: Tensor,
    feature: Tensor,
    boxes: Tensor,
    weight: Tensor,
    stride: float,
    need_feature: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of :func:`forward`, see :func:`.gather_cpu.backward`."""
    grad_rows, boxes = _rows(grad), boxes.contiguous()
    grad_feature, grad_weight = feature.new_empty(0), weight.new_empty(0)
    _alert_not_deterministic()
    with _on_device(feature):
        if need_feature:
            grad_feature = _feature_gradient(grad_rows, feature, boxes, weight, stride)
        if need_weight:
            grad_weight = _weight_gradient(grad_rows, feature, boxes, weight, stride)
    return grad_feature, grad_weight


def _alert_not_deterministic() -> None:
    """Raise or warn, as PyTorch's own operators do, if deterministic algorithms are required.

    Raises:
        RuntimeError: ``torch.use_deterministic_algorithms(True)`` was called.
    """
    if torch.are_deterministic_algorithms_enabled():
        message = "the gradient of adaptive_conv2d on CUDA devices is not deterministic"
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=2)


def _feature_gradient(
    grad_rows: Tensor, feature: Tensor, boxes: Tensor, weight: Tensor, stride: float
) -> Tensor:
    images, channels, height, width = feature.shape
    sums = grad_rows.new_zeros((images, height, width, channels), dtype=torch.float32)

    def grid(tile: dict[str, int]) -> tuple[int, ...]:
        blocks_in = triton.cdiv(channels, tile["block_in"])
        return _blocks(sums, tile["block_cells"]), blocks_in, TAPS

    if images:
        tuned_feature_gradient[grid](
            grad=grad_rows,
            boxes=boxes,
            weight=weight.permute(2, 3, 0, 1).contiguous(),
            grad_feature=sums,
            **_common(feature, weight, stride),
        )
    return torch.empty_like(feature).copy_(sums.permute(0, 3, 1, 2))


def _weight_gradient(
    grad_rows: Tensor, feature: Tensor, boxes: Tensor, weight: Tensor, stride: float
) -> Tensor:
    out_channels, channels = weight.shape[:2]
    sums = grad_rows.new_zeros((3, 3, channels, out_channels), dtype=torch.float32)
    cells = len(grad_rows)

    def grid(tile: dict[str, int]) -> tuple[int, ...]:
        blocks = triton.cdiv(channels, tile["block_in"])
        blocks *= triton.cdiv(out_channels, tile["block_out"])
        return blocks, TAPS, triton.cdiv(cells, _CELLS_PER_SUM)

    if cells:
        tuned_weight_gradient[grid](
            grad=grad_rows,
            feature=_rows(feature),
            boxes=boxes,
            grad_weight=sums,
            cells_per_sum=_CELLS_PER_SUM,
            **_common(feature, weight, stride),
        )
    return torch.empty_like(weight).copy_(sums.permute(3, 2, 0, 1))


def _rows(feature: Tensor) -> Tensor:
    """(N, C, H, W) -> (P, C), contiguous."""
    feature = feature.contiguous(memory_format=torch.channels_last)
    return feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1])


def _blocks(table: Tensor, cells: int) -> int:
    """Return the number of blocks of ``cells`` cells in a (N, H, W, C) table."""
    return triton.cdiv(table.shape[:3].numel(), cells)


def _common(feature: Tensor, weight: Tensor, stride: float) -> dict[str, Any]:
    """Return the arguments that all kernels take."""
    images, channels, height, width = feature.shape
    cells = images * height * width
    return {
        "total": cells,
        "height": height,
        "width": width,
        "stride": stride,
        "size_class": cells < _SMALL_MAP,
        "channels": channels,
        "out_channels": len(weight),
        "precision": _precision(feature.dtype),
    }


def _precision(dtype: torch.dtype) -> str:
    """Return how tensor cores multiply; see the module's docstring for float32."""
    if dtype != torch.float32 or torch.version.hip is not None:
        return "ieee"
    return "tf32" if _convolutions_use_tf32() else "tf32x3"


def _convolutions_use_tf32() -> bool:
    """Return True if cuDNN may use TF32 in convolutions, by the newer or the older switch."""
    conv: Any = getattr(torch.backends.cudnn, "conv", None)
    if hasattr(conv, "fp32_precision"):
        return bool(conv.fp32_precision == "tf32")
    return torch.backends.cudnn.allow_tf32


def _on_device(feature: Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's device the current one, on which Triton launches."""
    return torch.cuda.device(feature.device) if feature.is_cuda else nullcontext()
