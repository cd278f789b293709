"""Matching of cells with ground-truth boxes, by regions and by IoU, and sampling of the matches.

Cascade RPN matches the first stage without anchors, by regions of the ground-truth boxes, and all
later stages by the IoU of their boxes (arXiv 1909.06720, section 3.2; the exact rules are those of
mmdetection 3).

Shape shorthand:

    N: number of images
    G: number of ground-truth boxes of an image
    L: number of levels
    R: number of cells of all levels together, row-major within a level

A match is coded as k >= 0 (index of the matched ground-truth box), -1 (negative) or -2 (ignored).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

__all__ = [
    "IGNORED",
    "NEGATIVE",
    "CellGrid",
    "iou_match",
    "region_levels",
    "region_match",
    "region_match_images",
    "sample_matches",
    "valid_cells",
]

NEGATIVE = -1
IGNORED = -2

_MAX_PAIRS = 1 << 22
"""Number of (box, cell) pairs compared at a time, which bounds the memory to about 100 MB."""
_GROUP_SIZE = 64
"""Number of ground-truth boxes compared at a time if there are more pairs."""


@dataclass(frozen=True)
class CellGrid:
    """The cells of a batch.

    Attributes:
        feature_sizes: (height, width) of each level, in cells.
        strides: stride of each level, in image pixels.
        anchor_scale: side of the anchors, in cells of their own level.
        valid: (N, R) bool, see :func:`valid_cells`.
    """

    feature_sizes: Sequence[tuple[int, int]]
    strides: Sequence[int]
    anchor_scale: float
    valid: Tensor


def region_match(
    gt_boxes: Boxes,
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    anchor_scale: float = 8,
    center_ratio: float = 0.2,
    ignore_ratio: float = 0.5,
) -> Tensor:
    """Match every cell of every level with at most one ground-truth box, by regions.

    A ground-truth box belongs to one level of the pyramid, by its size. The cells of that level in
    a shrunken copy of the box are its positives. Those in a larger copy around it are ignored, and
    so are those of the larger copy on the two neighbouring levels.

    Boxes are painted in the given order, each first its ignored and then its positive region, so
    that a later box wins where two meet; the ignored cells of neighbouring levels win over all. A
    cell (column i, row j) lies at (i, j) in units of its stride, without a half-cell shift.

    Boxes of zero area belong to the first level. Boxes whose size is not a number (one negative
    side) match nothing.

    Args:
        gt_boxes: G boxes in image pixels.
        feature_sizes: (height, width) of each of the L levels, in cells.
        strides: stride of each level, in image pixels.
        anchor_scale: side of the anchors in cells, which decides the level of a box.
        center_ratio: side of the positive region, as a fraction of the box's side.
        ignore_ratio: side of the ignored region, likewise.

    Returns:
        (R,) int64 matches, levels concatenated.
    """
    return region_match_images(
        [gt_boxes],
        feature_sizes,
        strides,
        anchor_scale=anchor_scale,
        center_ratio=center_ratio,
        ignore_ratio=ignore_ratio,
    )[0]


@torch.no_grad()
def region_match_images(
    gt_boxes: Sequence[Boxes],
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    anchor_scale: float = 8,
    center_ratio: float = 0.2,
    ignore_ratio: float = 0.5,
) -> Tensor:
    """Match the cells of several images by regions, see :func:`region_match`.

    The regions are painted on the host: a few rectangles per box, for which a GPU would need
    hundreds of small kernels. The boxes of all images are copied to the host together, and the
    matches back.

    Args:
        gt_boxes: ground-truth boxes of each of the N images.
        feature_sizes: see :func:`region_match`, and likewise the other arguments.
        strides: see there.
        anchor_scale: see there.
        center_ratio: see there.
        ignore_ratio: see there.

    Returns:
        (N, R) int64 matches, on the device of the boxes.
    """
    all_boxes = torch.cat([x.tensor for x in gt_boxes])
    boxes = all_boxes.cpu()
    levels = region_levels(Boxes(boxes), len(strides), base_size=anchor_scale * strides[0])
    level = levels.nan_to_num(nan=0.0).long()
    positive = _regions(boxes, center_ratio, level, feature_sizes, strides)
    ignored, finer, coarser = (
        _regions(boxes, ignore_ratio, near, feature_sizes, strides)
        for near in (level, level - 1, level + 1)
    )
    own, matchable = level.tolist(), levels.isfinite().tolist()

    areas = [height * width for height, width in feature_sizes]
    matches = torch.full((len(gt_boxes), sum(areas)), NEGATIVE)
    first = 0
    for row, gt in zip(matches, gt_boxes, strict=True):
        # NumPy views of the levels: assigning to a slice of them is several times faster.
        maps = [m.view(s).numpy() for m, s in zip(row.split(areas), feature_sizes, strict=True)]
        of_image = [k for k in range(first, first + len(gt)) if matchable[k]]
        for k in of_image:
            _paint(maps[own[k]], ignored[k], IGNORED)
            _paint(maps[own[k]], positive[k], k - first)
        for k in of_image:
            if own[k] > 0:
                _paint(maps[own[k] - 1], finer[k], IGNORED)
            if own[k] + 1 < len(maps):
                _paint(maps[own[k] + 1], coarser[k], IGNORED)
        first += len(gt)
    return matches.to(all_boxes.device)


def region_levels(gt_boxes: Boxes, num_levels: int, *, base_size: float) -> Tensor:
    """Return the level of each box: that whose anchors are nearest in size, in powers of two.

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


def _regions(
    boxes: Tensor,
    ratio: float,
    levels: Tensor,
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
) -> list[list[int]]:
    """Return the cells around the centre of each box, on the given level of each.

    Both ends are rounded (half to even), inclusive, and clamped to 0..W and 0..H. A region that
    rounds to column W, which does not exist, has no cell.

    Args:
        boxes: (G, 4) on the host.
        ratio: side of the region, as a fraction of the box's side.
        levels: (G,) int64; a level that does not exist gives a region that means nothing.
        feature_sizes: (height, width) of each level, in cells.
        strides: stride of each level, in image pixels.

    Returns:
        The first column, first row, last column and last row of each box.
    """
    levels = levels.clamp(0, len(strides) - 1)
    low, high = (boxes / torch.tensor(strides)[levels, None]).split(2, dim=1)
    shrink = (1 - ratio) / 2
    first = ((1 - shrink) * low + shrink * high).round()
    last = (shrink * low + (1 - shrink) * high).round()
    limits = torch.tensor([[w, h, w, h] for h, w in feature_sizes])[levels]
    ends = torch.cat([first, last], dim=1).nan_to_num(nan=0.0).clamp(min=0)
    return torch.minimum(ends, limits).int().tolist()


def _paint(cells: np.ndarray, region: Sequence[int], value: int) -> None:
    x0, y0, x1, y1 = region
    cells[y0 : y1 + 1, x0 : x1 + 1] = value


@torch.no_grad()
def iou_match(
    gt_boxes: Boxes, boxes: Boxes, *, iou_threshold: float = 0.7, low_quality_iou: float = 0.3
) -> Tensor:
    """Match boxes with ground truth by IoU (Cascade RPN's anchor-based metric).

    A box matches the ground truth it overlaps most (the first of equals) if their IoU is at least
    ``iou_threshold``. Then every ground truth whose best IoU m is at least ``low_quality_iou``
    takes all boxes whose IoU with it is m, even if they are matched already; the last one wins.
    detectron2's Matcher has no such floor and leaves those boxes with the ground truth they overlap
    most. No box is ignored.

    Args:
        gt_boxes: G ground-truth boxes.
        boxes: R boxes; empty ones have IoU 0.
        iou_threshold: least IoU of an ordinary match, above 0.
        low_quality_iou: least IoU of a ground truth's best box, above 0.

    Returns:
        (R,) int64 matches: k >= 0 or -1.
    """
    forced = torch.full((len(boxes),), NEGATIVE, device=boxes.device)
    if not len(gt_boxes) or not len(boxes):
        return forced
    if len(gt_boxes) * len(boxes) <= _MAX_PAIRS:
        iou = pairwise_iou(gt_boxes, boxes)
        best_iou, matches = iou.max(dim=0)
        k, index = _best_boxes(iou, low_quality_iou)
        forced.scatter_reduce_(0, index, k, "amax")
    else:
        best_iou, matches = torch.zeros(len(boxes), device=boxes.device), forced.clone()
        least_iou = min(iou_threshold, low_quality_iou)
        for group, near in _comparable(gt_boxes.tensor, boxes.tensor, least_iou):
            iou = pairwise_iou(gt_boxes[group], boxes[near])
            iou_of_box, k = iou.max(dim=0)
            # As if compared in order: the first of equals.
            k, before = group[k], best_iou[near]
            better = (iou_of_box > before) | ((iou_of_box == before) & (k < matches[near]))
            best_iou[near] = torch.where(better, iou_of_box, before)
            matches[near] = torch.where(better, k, matches[near])
            k, index = _best_boxes(iou, low_quality_iou)
            forced.scatter_reduce_(0, near[index], group[k], "amax")
    matches.masked_fill_(best_iou < iou_threshold, NEGATIVE)
    return torch.where(forced >= 0, forced, matches)


def _best_boxes(iou: Tensor, least_iou: float) -> tuple[Tensor, Tensor]:
    """Return the pairs (k, box) whose IoU is the best of ground truth k and at least that high."""
    best = iou.amax(dim=1, keepdim=True)
    k, box = ((iou == best) & (best >= least_iou)).nonzero(as_tuple=True)
    return k, box


def _comparable(
    gt_boxes: Tensor, boxes: Tensor, least_iou: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield groups of ground-truth boxes and the boxes that may match them.

    With thousands of objects in an image, most of the pairs are far apart, and comparing all of
    them would take most of a training step. The groups are of ground truth that is similar in place
    and size, and leave out the boxes that cannot reach ``least_iou``.

    Args:
        gt_boxes: (G, 4).
        boxes: (R, 4).
        least_iou: IoU below which a pair does not matter.

    Yields:
        Ascending indices of some of the ground truth, and of some of the boxes.
    """
    # Boxes reach an IoU t only if they intersect and if the ratios of their widths and of their
    # heights are between t and 1/t; a little less strict for the sake of rounding. All conditions
    # are written as numbers of a box that must be below a bound: (8, R) < (8, 1).
    ratio = 0.99 * least_iou
    sizes = boxes[:, 2:] - boxes[:, :2]
    numbers = torch.cat([boxes[:, :2], -boxes[:, 2:], sizes * ratio, -sizes], dim=1)
    numbers = numbers.t().contiguous()
    # Boxes with a NaN match nothing.
    usable = gt_boxes.isfinite().all(dim=1).nonzero()[:, 0]
    most = max(min(_MAX_PAIRS // len(boxes), _GROUP_SIZE), 1)
    for group in _similar(gt_boxes[usable].cpu(), most):
        group = usable[group.to(usable.device)]
        low, high = gt_boxes[group].split(2, dim=1)
        gt_sizes = high - low
        bounds = torch.cat(
            [high.amax(0), -low.amin(0), gt_sizes.amax(0), -ratio * gt_sizes.amin(0)]
        )
        near = (numbers < bounds[:, None]).all(dim=0).nonzero()[:, 0]
        if len(near):
            yield group, near


def _similar(boxes: Tensor, most: int) -> Iterator[Tensor]:
    """Split boxes into groups of at most ``most`` that are similar in place and size.

    They are halved at the median of the coordinate in which they differ most, again and again.

    Args:
        boxes: (G, 4) on the host.
        most: maximum number of boxes of a group.

    Yields:
        Ascending indices of the boxes of a group.
    """
    centers, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    # Sizes differ by their ratio, positions in units of the typical size.
    points = torch.cat([centers / sizes.log().mean().exp(), sizes.log()], dim=1)
    pending = [torch.arange(len(boxes))]
    while pending:
        group = pending.pop()
        if len(group) <= most:
            yield group.sort().values
            continue
        spread = points[group].amax(dim=0) - points[group].amin(dim=0)
        order = group[points[group, spread.argmax()].argsort()]
        pending += order.split(math.ceil(len(order) / 2))


def valid_cells(
    image_sizes: Sequence[tuple[int, int]],
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    size_divisibility: int = 32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Mark the cells that belong to an image rather than to the padding of its batch.

    An image takes up its own size rounded up to a multiple of ``size_divisibility``, independently
    of the other images of the batch.

    Args:
        image_sizes: (height, width) of the N images, in pixels.
        feature_sizes: (height, width) of each level, in cells.
        strides: stride of each level.
        size_divisibility: divisor that image sizes are rounded up to.
        device: device of the result.

    Returns:
        (N, R) bool.
    """
    areas = [height * width for height, width in feature_sizes]
    valid = torch.zeros(len(image_sizes), sum(areas), dtype=torch.bool, device=device)
    for flags, image_size in zip(valid, image_sizes, strict=True):
        height, width = (_round_up(side, size_divisibility) for side in image_size)
        for level, size, stride in zip(flags.split(areas), feature_sizes, strides, strict=True):
            # A cell is valid if it begins before the image ends: row < ceil(height / stride).
            rows, columns = math.ceil(height / stride), math.ceil(width / stride)
            level.view(size)[:rows, :columns] = True
    return valid


def _round_up(side: int, divisor: int) -> int:
    return math.ceil(side / divisor) * divisor


def sample_matches(
    matches: Tensor, num_samples: int, positive_fraction: float
) -> tuple[Tensor, Tensor]:
    """Draw a random subset of the positives and negatives of one image.

    Args:
        matches: (R,) int64 matches.
        num_samples: maximum number of cells drawn.
        positive_fraction: maximum fraction of positives among them.

    Returns:
        Indices of the sampled positives and negatives.
    """
    labels = matches.clamp(max=0) + 1  # detectron2's: -1 ignored, 0 negative, 1 positive
    return subsample_labels(labels, num_samples, positive_fraction, 0)
