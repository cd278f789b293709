"""Matching cells with ground truth by regions: the anchor-free metric of the first stage.

A ground-truth box belongs to one level of the pyramid, by its size. The cells of that level in a
shrunken copy of the box are its positives, those in a larger copy around it are ignored, and so
are those of the larger copy on the two neighbouring levels (Cascade RPN, arXiv 1909.06720, section
3.2; the exact rules are those of mmdetection 3).

Shapes: G ground-truth boxes, L levels, R cells of all levels together, row-major within a level.
"""

from collections.abc import Iterator, Sequence

import torch
from detectron2.structures import Boxes
from torch import Tensor

from .matching import IGNORED, NEGATIVE

__all__ = ["region_levels", "region_match"]

_MAX_CELLS = 1 << 20
"""Cells painted at a time: bounds the memory, at about 100 MB."""


def region_match(
    gt_boxes: Boxes,
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    anchor_scale: float = 8,
    center_ratio: float = 0.2,
    ignore_ratio: float = 0.5,
) -> Tensor:
    """Match every cell of every level with a ground-truth box, or with none.

    Boxes are painted in the given order, each first its ignored and then its positive region, so
    that a later box wins where two meet; the ignored cells of neighbouring levels win over all. A
    cell (column i, row j) lies at (i, j) in units of its stride, without a half-cell shift.

    Boxes of zero area belong to the first level. Boxes whose size is not a number (one negative
    side) match nothing.

    Args:
        gt_boxes: G boxes in image pixels.
        feature_sizes: (height, width) of each of the L levels, in cells.
        strides: of the L levels, in image pixels.
        anchor_scale: side of the anchors in cells; it fixes which level a box belongs to.
        center_ratio: side of the positive region, as a part of the box's.
        ignore_ratio: side of the ignored region.

    Returns:
        (R,) int64, levels concatenated: k >= 0 the matched box, -1 negative, -2 ignored.
    """
    boxes = gt_boxes.tensor
    areas = [h * w for h, w in feature_sizes]
    # What is painted on a cell: 2k for the ignored, 2k + 1 for the positive region of box k. The
    # largest number is the last one painted.
    painted = torch.full((sum(areas),), -1, dtype=torch.int64, device=boxes.device)
    neighbour = torch.zeros_like(painted, dtype=torch.bool)
    levels = region_levels(gt_boxes, len(strides), base_size=anchor_scale * strides[0])
    start = 0
    for level, (size, stride, area) in enumerate(zip(feature_sizes, strides, areas, strict=True)):
        of_level = painted[start : start + area]
        ignored = _regions(boxes, ignore_ratio, stride, size)
        positive = _regions(boxes, center_ratio, stride, size)
        for regions, odd in ((ignored, 0), (positive, 1)):
            for cells, k in _cells(regions, levels == level, size[1]):
                of_level.scatter_reduce_(0, cells, 2 * k + odd, "amax")
        for cells, _ in _cells(ignored, (levels - level).abs() == 1, size[1]):
            neighbour[start : start + area][cells] = True
        start += area
    matches = torch.where(painted % 2 == 1, painted // 2, IGNORED)
    return matches.masked_fill_(painted < 0, NEGATIVE).masked_fill_(neighbour, IGNORED)


def region_levels(gt_boxes: Boxes, num_levels: int, *, base_size: float) -> Tensor:
    """The level each box belongs to: the one whose anchors are nearest in size, in powers of two.

    Args:
        gt_boxes: G boxes.
        num_levels: L.
        base_size: side of the first level's anchors, in image pixels.

    Returns:
        (G,) float32 in 0..L-1; NaN for boxes whose size is not a number.
    """
    log_size = gt_boxes.area().sqrt().log2()
    log_base = torch.full((1,), base_size, device=log_size.device).log2()
    return (log_size - log_base + 0.5).floor().clamp(0, num_levels - 1)


def _regions(boxes: Tensor, ratio: float, stride: int, size: tuple[int, int]) -> Tensor:
    """Cells around the centre of each box: (G, 4) int64, first and last column and row.

    Both ends are rounded (half to even), inclusive, and clamped to 0..W and 0..H before cells that
    do not exist are cut off: a region that rounds to column W has no cell.
    """
    height, width = size
    shrink = (1 - ratio) / 2
    boxes = boxes / stride
    first = ((1 - shrink) * boxes[:, :2] + shrink * boxes[:, 2:]).round()
    last = (shrink * boxes[:, :2] + (1 - shrink) * boxes[:, 2:]).round()
    limit = boxes.new_tensor([width, height])
    ends = [torch.minimum(end.clamp(min=0), limit) for end in (first, last)]
    ends[1] = torch.minimum(ends[1], limit - 1)
    return torch.cat(ends, dim=1).nan_to_num_(0).long()


def _cells(regions: Tensor, chosen: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The cells of the chosen regions, in pieces of bounded size.

    Yields:
        ``cells`` and ``k``, both (P,): cell ``cells[p]`` of the level lies in region ``k[p]``.
    """
    x0, y0, x1, y1 = regions.unbind(dim=1)
    columns = (x1 - x0 + 1).clamp(min=0)
    counts = columns * (y1 - y0 + 1).clamp(min=0) * chosen
    # The number of cells shapes the tensors below: this waits for the device, once a level.
    ends = counts.cumsum(0).tolist()
    for piece in _pieces(ends):
        total = ends[piece.stop - 1] - (ends[piece.start - 1] if piece.start else 0)
        if total == 0:
            continue
        n = counts[piece]
        k = torch.arange(piece.start, piece.stop, device=regions.device)
        k = k.repeat_interleave(n, output_size=total)
        # Position within its region, then row and column.
        first = n.cumsum(0) - n
        inside = torch.arange(total, device=regions.device) - first[k - piece.start]
        row = inside // columns[k]
        yield (y0[k] + row) * width + x0[k] + inside - row * columns[k], k


def _pieces(ends: list[int]) -> Iterator[slice]:
    """Runs of regions with at most _MAX_CELLS cells together, or one region."""
    start, before = 0, 0
    for i, end in enumerate(ends):
        if end - before > _MAX_CELLS and i > start:
            yield slice(start, i)
            start, before = i, ends[i - 1]
    if ends:
        yield slice(start, len(ends))
