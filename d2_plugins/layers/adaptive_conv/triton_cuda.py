"""The adaptive convolution on CUDA devices, by the kernels of :mod:`.triton_kernels`.

The feature's gradient is added up by atomic additions, whose order, and so the last bits of the
result, differ from run to run, as with torchvision's operator.

float32 products use three TF32 products each, which keeps float32's precision on tensor cores; if
``torch.set_float32_matmul_precision`` allows less than "highest", they use one.

Tile sizes are tuned at the first call for each number of channels and dtype, which takes some
seconds.

Shapes: N images, C_in, C_out channels, H, W of the feature map, P = N * H * W cells of all images.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from .geometry import TAPS, empty_result
from .triton_kernels import tuned_feature_gradient, tuned_forward, tuned_weight_gradient

__all__ = ["backward", "forward"]

# Cells that one program of the weight's gradient sums over before it adds to the others' sums.
_CELLS_PER_SUM = 2048
# Maps with fewer cells are tuned by themselves: there are few programs then.
_SMALL_MAP = 4096


def forward(
    feature: Tensor, boxes: Tensor, weight: Tensor, bias: Tensor | None, stride: float
) -> Tensor:
    """The convolution; arguments and result as in :func:`.adaptive_conv.adaptive_conv2d`.

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
    """Gradients of :func:`forward`; as :func:`.gather_cpu.backward`."""
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
    """Do as PyTorch's own operators do when deterministic algorithms are asked for.

    Raises:
        RuntimeError: ``torch.use_deterministic_algorithms(True)`` is in force.
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
    """The arguments that all kernels take."""
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
        "precision": _precision(),
    }


def _precision() -> str:
    """How tensor cores may treat float32, see the module's docstring."""
    if torch.version.hip is not None:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _on_device(feature: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(feature.device) if feature.is_cuda else nullcontext()
