"""Matching cells with ground truth by IoU, which cells may be matched, and sampling.

Matches are coded as in :mod:`.region_matcher`: k >= 0 is the matched ground-truth box, -1 a
negative, -2 an ignored cell.

Shapes: N images, G ground-truth boxes of an image, R cells of all levels together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

__all__ = ["IGNORED", "NEGATIVE", "CellGrid", "iou_match", "sample_matches", "valid_cells"]

NEGATIVE = -1
IGNORED = -2

_MAX_PAIRS = 1 << 22
"""Pairs of a box and a cell compared at a time: bounds the memory, at about 100 MB."""


@dataclass(frozen=True)
class CellGrid:
    """Where the cells of a batch are.

    Attributes:
        feature_sizes: (height, width) of each level, in cells.
        strides: of the levels, in image pixels.
        anchor_scale: side of the anchors, in cells of their own level.
        valid: (N, R) bool, see :func:`valid_cells`.
    """

    feature_sizes: Sequence[tuple[int, int]]
    strides: Sequence[int]
    anchor_scale: float
    valid: Tensor


@torch.no_grad()
def iou_match(
    gt_boxes: Boxes, boxes: Boxes, *, iou_threshold: float = 0.7, low_quality_iou: float = 0.3
) -> Tensor:
    """Match boxes with ground truth by IoU (Cascade RPN's anchor-based metric).

    A box matches the ground truth it overlaps most (the first of equals) if their IoU is at least
    ``iou_threshold``. Then every ground truth whose best IoU m is at least ``low_quality_iou``
    takes all boxes whose IoU with it is m, whatever they matched before; the last one wins.
    detectron2's Matcher has no such floor and leaves those boxes with the ground truth they overlap
    most. There is no ignored band.

    Args:
        gt_boxes: G boxes.
        boxes: R boxes; empty ones have IoU 0.
        iou_threshold: IoU of a match.
        low_quality_iou: least IoU of a match that is only a ground truth's best.

    Returns:
        (R,) int64: k >= 0 or -1.
    """
    best = torch.zeros(len(boxes), device=boxes.device)
    matches = torch.full((len(boxes),), NEGATIVE, device=boxes.device)
    forced = matches.clone()
    step = max(_MAX_PAIRS // max(len(boxes), 1), 1)
    for start in range(0, len(gt_boxes) if len(boxes) else 0, step):
        iou = pairwise_iou(gt_boxes[start : start + step], boxes)
        iou_of_box, k = iou.max(dim=0)
        better = iou_of_box > best
        best = torch.where(better, iou_of_box, best)
        matches = torch.where(better, k + start, matches)
        iou_of_gt = iou.amax(dim=1, keepdim=True)
        k, index = ((iou == iou_of_gt) & (iou_of_gt >= low_quality_iou)).nonzero(as_tuple=True)
        forced.scatter_reduce_(0, index, k + start, "amax")
    matches.masked_fill_(best < iou_threshold, NEGATIVE)
    return torch.where(forced >= 0, forced, matches)


def valid_cells(
    image_sizes: Sequence[tuple[int, int]],
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    size_divisibility: int = 32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Which cells belong to an image rather than to the padding of its batch.

    An image takes up its own size rounded up to a multiple of ``size_divisibility``, whatever it
    was batched with.

    Args:
        image_sizes: (height, width) of the N images, in pixels.
        feature_sizes: (height, width) of each level, in cells.
        strides: of the levels.
        size_divisibility: see above.
        device: of the result.

    Returns:
        (N, R) bool.
    """
    sizes = torch.tensor(image_sizes, dtype=torch.int64).view(-1, 2, 1, 1)
    height, width = (-(-sizes // size_divisibility) * size_divisibility).unbind(dim=1)
    flags = []
    for (rows, columns), stride in zip(feature_sizes, strides, strict=True):
        # A cell is valid if it begins before the image ends: row < ceil(height / stride).
        y = torch.arange(rows)[:, None] * stride < height
        x = torch.arange(columns)[None] * stride < width
        flags.append((y & x).flatten(1))
    return torch.cat(flags, dim=1).to(device)


def sample_matches(
    matches: Tensor, num_samples: int, positive_fraction: float
) -> tuple[Tensor, Tensor]:
    """A random subset of the positives and negatives of one image.

    Args:
        matches: (R,) int64, see the module.
        num_samples: how many at most.
        positive_fraction: part of them that positives take at most.

    Returns:
        Indices of the sampled positives and negatives.
    """
    labels = matches.clamp(max=0) + 1  # detectron2's: -1 ignored, 0 negative, 1 positive
    return subsample_labels(labels, num_samples, positive_fraction, 0)
