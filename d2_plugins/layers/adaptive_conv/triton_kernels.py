"""Triton kernels of the adaptive convolution, and the tile sizes that are tuned.

They are implicit matrix products: a program takes a block of cells, computes their taps from the
four numbers of each box, samples a block of channels at a time and multiplies with the weight.
Neither the offsets nor the nine-fold columns are ever stored. Tables are channels-last, so that the
channels of a cell are contiguous; sums are float32 for all input dtypes.

With ``TRITON_INTERPRET=1`` in the environment before the import they run on CPU tensors, for tests.

Shape shorthand:

    C_in, C_out: numbers of channels
    H, W: height and width of the feature map
    P: number of cells of all images, N * H * W
"""

import inspect
import os
from typing import Any

import triton
import triton.language as tl

__all__ = [
    "FEATURE_CONFIGS",
    "FORWARD_CONFIGS",
    "WEIGHT_CONFIGS",
    "feature_gradient_kernel",
    "forward_kernel",
    "probe_kernel",
    "tuned_feature_gradient",
    "tuned_forward",
    "tuned_weight_gradient",
    "weight_gradient_kernel",
]

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Arguments that change from image to image: one compiled kernel serves all their values.
_SIZES = ["total", "height", "width"]


@triton.jit
def _axis_tap(
    low: tl.tensor, high: tl.tensor, tap: tl.tensor, stride: tl.tensor, size: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the cell below a tap along one axis, its share and the next cell's; 0 outside."""
    centre = (low + high) * 0.5
    position = tl.where(tap == 0, low, tl.where(tap == 1, centre, high)) / stride
    # All three conditions are false for a position that is not finite.
    inside = (tl.abs(centre) < float("inf")) & (position > -1) & (position < size)
    position = tl.where(inside, position, -1.0)
    below = tl.floor(position)
    share = position - below
    below = below.to(tl.int32)
    return below, tl.where(below >= 0, 1 - share, 0.0), tl.where(below + 1 < size, share, 0.0)


@triton.jit
def _corners(
    boxes: tl.tensor,
    cells: tl.tensor,
    total: tl.tensor,
    tap: tl.tensor,
    stride: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return the first of the four cells around a tap of each cell, and the shares of the four."""
    box = boxes + cells.to(tl.int64) * 4
    known = cells < total
    x1 = tl.load(box, mask=known, other=float("inf"))
    y1 = tl.load(box + 1, mask=known, other=float("inf"))
    x2 = tl.load(box + 2, mask=known, other=float("inf"))
    y2 = tl.load(box + 3, mask=known, other=float("inf"))
    y, top, bottom = _axis_tap(y1, y2, tap // 3, stride, height)
    x, left, right = _axis_tap(x1, x2, tap % 3, stride, width)
    image = cells // (height * width)
    first = ((image * height + y) * width + x).to(tl.int64)
    return first, top * left, top * right, bottom * left, bottom * right


@triton.jit
def _samples(
    feature: tl.tensor,
    first: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    d: tl.tensor,
    columns: tl.tensor,
    width: tl.tensor,
    channels: tl.constexpr,
) -> tl.tensor:
    """Return bilinear samples of some channels: (cells, columns), float32."""
    known = (columns < channels)[None, :]
    top = feature + first[:, None] * channels + columns[None, :]
    bottom = top + width * channels
    value = a[:, None] * tl.load(top, mask=(a > 0)[:, None] & known, other=0)
    value += b[:, None] * tl.load(top + channels, mask=(b > 0)[:, None] & known, other=0)
    value += c[:, None] * tl.load(bottom, mask=(c > 0)[:, None] & known, other=0)
    value += d[:, None] * tl.load(bottom + channels, mask=(d > 0)[:, None] & known, other=0)
    return value


@triton.jit(do_not_specialize=_SIZES)
def forward_kernel(
    feature: tl.tensor,  # (P, C_in)
    boxes: tl.tensor,  # (P, 4) float32
    weight: tl.tensor,  # (9, C_in, C_out)
    bias: tl.tensor,  # (C_out) or None
    out: tl.tensor,  # (P, C_out)
    total: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    stride: tl.tensor,
    size_class: tl.tensor,  # only for the tuner
    channels: tl.constexpr,
    out_channels: tl.constexpr,
    precision: tl.constexpr,
    block_cells: tl.constexpr,
    block_out: tl.constexpr,
    block_in: tl.constexpr,
) -> None:
    """Compute one block of cells and output channels: sum over taps and input channels."""
    cells = tl.program_id(0) * block_cells + tl.arange(0, block_cells)
    outs = tl.program_id(1) * block_out + tl.arange(0, block_out)
    sums = tl.zeros((block_cells, block_out), dtype=tl.float32)
    for tap in range(9):
        first, a, b, c, d = _corners(boxes, cells, total, tap, stride, height, width)
        for start in range(0, channels, block_in):
            ins = start + tl.arange(0, block_in)
            factor = tl.load(
                weight + (tap * channels + ins)[:, None] * out_channels + outs[None, :],
                mask=(ins < channels)[:, None] & (outs < out_channels)[None, :],
                other=0,
            )
            value = _samples(feature, first, a, b, c, d, ins, width, channels)
            sums = tl.dot(value.to(factor.dtype), factor, sums, input_precision=precision)
    if bias is not None:
        sums += tl.load(bias + outs, mask=outs < out_channels, other=0)[None, :]
    tl.store(
        out + cells.to(tl.int64)[:, None] * out_channels + outs[None, :],
        sums.to(out.dtype.element_ty),
        mask=(cells < total)[:, None] & (outs < out_channels)[None, :],
    )


@triton.jit(do_not_specialize=_SIZES)
def feature_gradient_kernel(
    grad: tl.tensor,  # (P, C_out)
    boxes: tl.tensor,  # (P, 4) float32
    weight: tl.tensor,  # (9, C_out, C_in)
    grad_feature: tl.tensor,  # (P, C_in) float32, zero
    total: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    stride: tl.tensor,
    size_class: tl.tensor,  # only for the tuner
    channels: tl.constexpr,
    out_channels: tl.constexpr,
    precision: tl.constexpr,
    block_cells: tl.constexpr,
    block_in: tl.constexpr,
    block_out: tl.constexpr,
) -> None:
    """Compute one block of cells and input channels of one tap, and scatter it."""
    cells = tl.program_id(0) * block_cells + tl.arange(0, block_cells)
    ins = tl.program_id(1) * block_in + tl.arange(0, block_in)
    tap = tl.program_id(2)
    sums = tl.zeros((block_cells, block_in), dtype=tl.float32)
    row = grad + cells.to(tl.int64)[:, None] * out_channels
    for start in range(0, out_channels, block_out):
        outs = start + tl.arange(0, block_out)
        known = outs < out_channels
        value = tl.load(
            row + outs[None, :], mask=(cells < total)[:, None] & known[None, :], other=0
        )
        factor = tl.load(
            weight + (tap * out_channels + outs)[:, None] * channels + ins[None, :],
            mask=known[:, None] & (ins < channels)[None, :],
            other=0,
        )
        sums = tl.dot(value, factor, sums, input_precision=precision)
    for corner in range(4):
        first, a, b, c, d = _corners(boxes, cells, total, tap, stride, height, width)
        share = tl.where(corner < 2, tl.where(corner == 0, a, b), tl.where(corner == 2, c, d))
        cell = first + corner // 2 * width + corner % 2
        tl.atomic_add(
            grad_feature + cell[:, None] * channels + ins[None, :],
            share[:, None] * sums,
            mask=(share > 0)[:, None] & (ins < channels)[None, :],
            sem="relaxed",
        )


@triton.jit(do_not_specialize=[*_SIZES, "cells_per_sum"])
def weight_gradient_kernel(
    grad: tl.tensor,  # (P, C_out)
    feature: tl.tensor,  # (P, C_in)
    boxes: tl.tensor,  # (P, 4) float32
    grad_weight: tl.tensor,  # (9, C_in, C_out) float32, zero
    total: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    stride: tl.tensor,
    cells_per_sum: tl.tensor,
    size_class: tl.tensor,  # only for the tuner
    channels: tl.constexpr,
    out_channels: tl.constexpr,
    precision: tl.constexpr,
    block_in: tl.constexpr,
    block_out: tl.constexpr,
    block_cells: tl.constexpr,
) -> None:
    """Compute one block of input and output channels of one tap, over a stretch of cells."""
    blocks_out = tl.cdiv(out_channels, block_out)
    ins = tl.program_id(0) // blocks_out * block_in + tl.arange(0, block_in)
    outs = tl.program_id(0) % blocks_out * block_out + tl.arange(0, block_out)
    tap = tl.program_id(1)
    begin = tl.program_id(2) * cells_per_sum
    sums = tl.zeros((block_in, block_out), dtype=tl.float32)
    for start in range(begin, tl.minimum(begin + cells_per_sum, total), block_cells):
        cells = start + tl.arange(0, block_cells)
        factor = tl.load(
            grad + cells.to(tl.int64)[:, None] * out_channels + outs[None, :],
            mask=(cells < total)[:, None] & (outs < out_channels)[None, :],
            other=0,
        )
        first, a, b, c, d = _corners(boxes, cells, total, tap, stride, height, width)
        value = _samples(feature, first, a, b, c, d, ins, width, channels).to(factor.dtype)
        sums = tl.dot(tl.trans(value), factor, sums, input_precision=precision)
    tl.atomic_add(
        grad_weight + (tap * channels + ins)[:, None] * out_channels + outs[None, :],
        sums,
        mask=(ins < channels)[:, None] & (outs < out_channels)[None, :],
        sem="relaxed",
    )


@triton.jit
def probe_kernel(out: tl.tensor) -> None:
    """Store a one, to find out whether Triton works."""
    tl.store(out, 1.0)


def _configs(names: str, tiles: list[tuple[int, ...]]) -> list[triton.Config]:
    """Return configurations of three named sizes each, followed by warps and stages."""
    return [
        triton.Config(
            dict(zip(names.split(), sizes, strict=True)), num_warps=warps, num_stages=stages
        )
        for *sizes, warps, stages in tiles
    ]


# Every configuration costs seconds at the first step, so there are few: of those tried, the ones
# that spill no registers and fit into the shared memory of every GPU from Ampere on.
FORWARD_CONFIGS = {
    16: _configs(
        "block_cells block_out block_in",
        [(64, 128, 32, 4, 3), (64, 256, 32, 8, 3), (32, 64, 32, 4, 4)],
    ),
    32: _configs(
        "block_cells block_out block_in",
        [(64, 128, 16, 4, 3), (64, 256, 16, 8, 3), (32, 64, 32, 4, 4)],
    ),
}
"""Tiles of the forward kernel by the bits of the inputs' dtype, and likewise those below."""
# The addresses of the scattered rows take many registers; larger tiles spill.
FEATURE_CONFIGS = {
    bits: _configs("block_cells block_in block_out", [(64, 64, 32, 8, 3), (32, 64, 64, 4, 3)])
    for bits in (16, 32)
}
WEIGHT_CONFIGS = {
    16: _configs(
        "block_in block_out block_cells",
        [(64, 128, 32, 4, 3), (64, 256, 32, 8, 3), (64, 64, 32, 4, 3)],
    ),
    32: _configs(
        "block_in block_out block_cells",
        [(64, 128, 16, 4, 3), (64, 256, 16, 8, 3), (64, 64, 16, 4, 3)],
    ),
}


def _tuned(kernel: Any, configs: dict[int, list[triton.Config]], sums: str | None = None) -> Any:
    """Return the kernel with the fastest configuration for the dtype, chosen at the first call.

    Args:
        kernel: the kernel.
        configs: configurations by the bits of the dtype.
        sums: name of the buffer that the kernel adds to, which is zeroed between trials.
    """

    def of_dtype(
        _: list[triton.Config], __: dict[str, Any], **arguments: Any
    ) -> list[triton.Config]:
        return configs[8 * arguments["weight" if "weight" in arguments else "grad"].element_size()]

    # The choice is kept on disk, next to the compiled kernels, by versions that can do that.
    known = inspect.signature(triton.autotune).parameters
    return triton.autotune(
        configs[32][-1:] if _INTERPRETED else [*configs[16], *configs[32]],
        key=["channels", "out_channels", "precision", "size_class"],
        reset_to_zero=[sums] if sums else None,
        prune_configs_by=None if _INTERPRETED else {"early_config_prune": of_dtype},
        **({"cache_results": True} if "cache_results" in known else {}),
    )(kernel)


tuned_forward = _tuned(forward_kernel, FORWARD_CONFIGS)
tuned_feature_gradient = _tuned(feature_gradient_kernel, FEATURE_CONFIGS, "grad_feature")
tuned_weight_gradient = _tuned(weight_gradient_kernel, WEIGHT_CONFIGS, "grad_weight")
