"""The matching rules of the specification as plain loops, to compare the vectorised code with."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def region_match_loop(
    gt_boxes: Tensor,
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    anchor_scale: float = 8,
    center_ratio: float = 0.2,
    ignore_ratio: float = 0.5,
    neighbours: bool = True,
) -> Tensor:
    """Box by box, level by level, cell by cell.

    ``neighbours=False`` leaves out the ignored regions of neighbouring levels: a wrong rule.
    """
    maps = [torch.full(size, -1) for size in sizes]
    also_ignored = [torch.zeros(size, dtype=torch.bool) for size in sizes]
    for k, box in enumerate(gt_boxes):
        level = _level(box, len(sizes), anchor_scale * strides[0])
        if level is None:
            continue
        for row, column in _inside(box, ignore_ratio, strides[level], sizes[level]):
            maps[level][row, column] = -2
        for row, column in _inside(box, center_ratio, strides[level], sizes[level]):
            maps[level][row, column] = k
        for near in (level - 1, level + 1):
            if neighbours and 0 <= near < len(sizes):
                for row, column in _inside(box, ignore_ratio, strides[near], sizes[near]):
                    also_ignored[near][row, column] = True
    for cells, flags in zip(maps, also_ignored, strict=True):
        cells[flags] = -2
    return torch.cat([cells.flatten() for cells in maps])


def _level(box: Tensor, levels: int, base: float) -> int | None:
    area = ((box[2] - box[0]) * (box[3] - box[1])).item()
    if math.isnan(area) or area < 0:
        return None
    if area == 0:
        return 0
    log_size = torch.tensor(area).sqrt().log2() - torch.tensor(float(base)).log2()
    return min(max(math.floor((log_size + 0.5).item()), 0), levels - 1)


def _inside(box: Tensor, ratio: float, stride: int, size: tuple[int, int]) -> list[tuple[int, int]]:
    r = (1 - ratio) / 2
    x0, y0, x1, y1 = box / stride
    ends = [
        ((1 - r) * x0 + r * x1, size[1]),
        ((1 - r) * y0 + r * y1, size[0]),
        (r * x0 + (1 - r) * x1, size[1]),
        (r * y0 + (1 - r) * y1, size[0]),
    ]
    left, top, right, bottom = (min(max(round(end.item()), 0), limit) for end, limit in ends)
    return [
        (row, column)
        for row in range(size[0])
        for column in range(size[1])
        if left <= column <= right and top <= row <= bottom
    ]


def iou_match_loop(
    gt_boxes: Tensor, boxes: Tensor, *, iou_threshold: float = 0.7, low_quality_iou: float = 0.3
) -> Tensor:
    """Box by box, then ground truth by ground truth."""
    iou = torch.tensor([[_iou(g, b) for b in boxes.tolist()] for g in gt_boxes.tolist()])
    iou = iou.view(len(gt_boxes), len(boxes))
    matches = torch.full((len(boxes),), -1)
    if len(gt_boxes) == 0 or len(boxes) == 0:
        return matches
    for b in range(len(boxes)):
        best = max(range(len(gt_boxes)), key=lambda k: (iou[k, b].item(), -k))
        if iou[best, b] >= iou_threshold:
            matches[b] = best
    for k in range(len(gt_boxes)):
        if iou[k].max() >= low_quality_iou:
            matches[iou[k] == iou[k].max()] = k
    return matches


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / max(union, 1e-6)
