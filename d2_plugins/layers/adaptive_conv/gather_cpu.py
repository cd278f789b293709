"""The adaptive convolution on the CPU: gather the taps of a block of cells, then multiply.

A map in channels-last order is a table of cells, one row of C numbers each. A bilinear sample is a
weighted sum of four rows, so the nine taps of a cell are nine bags of an embedding bag, a kernel
that is vectorised and threaded. The columns are gathered and multiplied a block of cells at a time,
so the memory does not grow with the map.

The backward pass needs one more gather and two products. Let A_t be the sparse matrix that samples
tap t of every cell, x the table of the feature and W_t the weight of the tap: the output is the sum
over t of A_t x W_t. With B_t = A_t^T g, the transposed gather of the gradient g of the output,

    dx = sum_t B_t W_t^T    and    dW_t = x^T B_t,

so one set of columns, B, serves both, and again a block at a time. The transposed gather is one
more embedding bag, once the (cell, share) pairs are sorted by the cell that they read. This is
deterministic and needs no atomic additions.

Shape shorthand:

    N: number of images
    C_in, C_out: numbers of channels
    H, W: height and width of the feature map
    P: number of cells of all images, N * H * W
    B: number of cells of a block
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import TAPS, axis_taps, empty_result
from .onednn import RowProduct, gather_dtype, sum_of_outer_products

__all__ = ["backward", "forward"]

_CORNERS = 4
_PAIRS = TAPS * _CORNERS
# Size of a block's columns. The product reads the whole weight once per block, so that small blocks
# cost more than the columns that leave the cache: 4 MiB took 1.28 to 1.34 times the time of conv2d,
# 16 MiB 1.19 to 1.22, 64 MiB 1.17 to 1.23 (256 channels, one thread).
_BLOCK_BYTES = 16 * 2**20
_MIN_BLOCK_CELLS = 64


def forward(
    feature: Tensor, boxes: Tensor, weight: Tensor, bias: Tensor | None, stride: float
) -> Tensor:
    """Convolve; arguments and result as of :func:`.convolution.adaptive_conv2d`.

    Returns:
        (N, C_out, H, W), channels-last in memory.
    """
    images, _, height, width = feature.shape
    rows = _rows(feature)
    lines = images * height  # rows of cells, with all images below each other
    result = empty_result(feature, weight)
    out = result.permute(0, 2, 3, 1).view(lines, width, len(weight))
    number, share = _corners(boxes.to(rows.dtype), (height, width), stride)
    block = _block_cells(rows)
    product = RowProduct(_as_matrix(weight), bias, min(block, len(rows)))
    starts = torch.arange(0, min(block, len(rows)) * _PAIRS, _CORNERS, dtype=torch.int32)

    for tile in _tiles(lines, width, block):
        here = (..., *tile)
        index, part = (table.t().reshape(-1) for table in _pairs(number[here], share[here]))
        target = out[tile]
        bags = starts[: len(index) // _CORNERS]
        # Do not bind the columns to a name: it would keep them alive during the next block.
        target.copy_(product(_bag_sums(rows, index, part, bags)).view_as(target))
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
    """Compute the gradients of :func:`forward`.

    Args:
        grad: gradient (N, C_out, H, W) of the result.
        feature: feature of the forward pass; the next three arguments likewise.
        boxes: see ``feature``.
        weight: see ``feature``.
        stride: see ``feature``.
        need_feature: compute the gradient of the feature.
        need_weight: compute the gradient of the weight.

    Returns:
        The gradients of ``feature`` and ``weight``; one that is not needed is empty.
    """
    rows, grad_rows = _rows(feature), _rows(grad)
    cell, share, starts = _transposed_pairs(
        boxes.to(rows.dtype), (feature.shape[2], feature.shape[3]), stride
    )
    block = _block_cells(grad_rows)
    # First pair of each block, as Python numbers for the slices in the loop.
    cuts = starts[: -1 : block * TAPS].tolist() + starts[-1:].tolist()
    # dx is the product of a convolution with input and output channels exchanged.
    product = RowProduct(_as_matrix(weight.transpose(0, 1)), None, min(block, len(rows)))
    grad_feature = torch.empty_like(rows if need_feature else rows[:0])
    grad_weight = rows.new_zeros((feature.shape[1], TAPS * len(weight)))

    for k, first in enumerate(range(0, len(rows), block)):
        cells = slice(first, min(first + block, len(rows)))
        pairs = slice(cuts[k], cuts[k + 1])
        bags = starts[cells.start * TAPS : cells.stop * TAPS] - pairs.start
        # The columns of B: for each cell, the gradients of the cells that read it, per tap.
        columns = _bag_sums(grad_rows, cell[pairs], share[pairs], bags).to(product.dtype)
        if need_feature:
            grad_feature[cells] = product(columns)
        if need_weight:
            grad_weight += sum_of_outer_products(rows[cells].to(product.dtype), columns)
        del columns  # or they would stay alive during the next block
    return (
        _as_feature(grad_feature, feature) if need_feature else feature.new_empty(0),
        _as_weight(grad_weight, weight) if need_weight else weight.new_empty(0),
    )


def _rows(feature: Tensor) -> Tensor:
    """(N, C, H, W) -> (P, C), in the dtype of the interpolation."""
    dtype = gather_dtype(feature.dtype)
    feature = feature.to(dtype).contiguous(memory_format=torch.channels_last)
    return feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1])


def _as_matrix(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) -> (O, 9 * C), contiguous."""
    return weight.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1)


def _as_feature(rows: Tensor, feature: Tensor) -> Tensor:
    """(P, C) -> (N, C, H, W) with the dtype and the memory format of ``feature``."""
    images, channels, height, width = feature.shape
    values = rows.view(images, height, width, channels).permute(0, 3, 1, 2).to(feature.dtype)
    target = torch.empty_like(feature)
    return values if values.stride() == target.stride() else target.copy_(values)


def _as_weight(product: Tensor, weight: Tensor) -> Tensor:
    """(C_in, 9 * C_out) -> (C_out, C_in, 3, 3) with the dtype and strides of ``weight``."""
    values = product.view(weight.shape[1], 3, 3, weight.shape[0]).permute(3, 0, 1, 2)
    return torch.empty_like(weight).copy_(values)


def _block_cells(rows: Tensor) -> int:
    """Return the number of cells of a block."""
    return max(_BLOCK_BYTES // (TAPS * rows.shape[1] * rows.element_size()), _MIN_BLOCK_CELLS)


def _tiles(lines: int, width: int, cells: int) -> Iterator[tuple[slice, slice]]:
    """Yield tiles of at most ``cells`` cells that cover a map and read as little as possible.

    The taps of a tile read its cells and, for boxes of the size of anchors, about four more on each
    side.
    """
    choices = []
    for columns in {math.ceil(width / n) for n in range(math.ceil(width / cells), width + 1)}:
        rows = math.ceil(lines / math.ceil(lines / (cells // columns))) if lines else 1
        tiles = math.ceil(lines / rows) * math.ceil(width / columns)
        choices.append((tiles * (rows + 8) * (columns + 8), rows, columns))
    _, rows, columns = min(choices)
    for top in range(0, lines, rows):
        for left in range(0, width, columns):
            yield slice(top, top + rows), slice(left, left + columns)


def _corners(boxes: Tensor, size: tuple[int, int], stride: float) -> tuple[Tensor, Tensor]:
    """Return the two columns and the two rows of the map around each tap.

    Args:
        boxes: (N, H * W, 4).
        size: (H, W).
        stride: image pixels per feature cell.

    Returns:
        Two tensors (3, 2, 2, N * H, W), for the three taps, the two cells around each, and x and
        y. The first, int32, has numbers whose sum over x and y is the number of a cell among all P.
        The second has shares whose product is the cell's share in the sample. Cells outside of the
        map have the share 0 and the number of the nearest cell inside.
    """
    images, (height, width) = len(boxes), size
    low, high = boxes.reshape(-1, 2, 2).permute(1, 2, 0).contiguous()  # each (2, P), x before y
    last = boxes.new_tensor([width - 1, height - 1])[:, None]
    taps = axis_taps(low, high, stride).clamp_(min=-1).minimum(last + 1)[:, None]
    cells = taps.floor() + torch.arange(2, dtype=taps.dtype)[:, None, None]
    share = taps.sub(cells).abs_().neg_().add_(1)
    inside = cells.clamp(min=0).minimum(last)
    share.mul_(inside == cells)

    number = inside.to(torch.int32)
    number[:, :, 1] *= width
    if images > 1:
        first = torch.arange(images, dtype=torch.int32) * (height * width)
        number[:, :, 1].unflatten(-1, (images, -1)).add_(first[:, None])
    shape = (3, 2, 2, images * height, width)
    return number.view(shape), share.view(shape)


def _pairs(number: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number and the share of every cell that the taps of B cells read.

    Args:
        number: (3, 2, 2, h, w) of a tile of B = h * w cells, see :func:`_corners`.
        share: the same shape.

    Returns:
        Two tensors (36, B), taps in row-major order.
    """
    index = number[:, None, :, None, 1] + number[None, :, None, :, 0]
    product = share[:, None, :, None, 1] * share[None, :, None, :, 0]
    return index.view(_PAIRS, -1), product.view(_PAIRS, -1)


def _transposed_pairs(
    boxes: Tensor, size: tuple[int, int], stride: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for every cell and tap, the cells that read it with that tap, and their shares.

    Returns:
        The reading cells (int32) and their shares, sorted by (cell read, tap); and (9 * P + 1)
        int32 starts of the groups.
    """
    index, share = _pairs(*_corners(boxes, size, stride))
    cells = index.shape[1]
    taps = torch.arange(TAPS, dtype=torch.int32).repeat_interleave(_CORNERS)
    group = index.mul_(TAPS).add_(taps[:, None])
    group.masked_fill_(share == 0, TAPS * cells)  # sorted to the end, after the last group
    order = group.view(-1).argsort(stable=True)
    counts = torch.bincount(group.view(-1), minlength=TAPS * cells + 1)[:-1]
    starts = F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    share = share.view(-1).index_select(0, order)
    return order.remainder(max(cells, 1)).to(torch.int32), share, starts


def _bag_sums(rows: Tensor, index: Tensor, share: Tensor, starts: Tensor) -> Tensor:
    """Return weighted sums of rows: 9 * B bags of (index, share) pairs -> (B, 9 * C) columns."""
    sums = F.embedding_bag(index, rows, starts, mode="sum", per_sample_weights=share)
    return sums.view(-1, TAPS * rows.shape[1])
