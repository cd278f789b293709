"""Positions of the nine taps of the adaptive convolution, as pure functions of the boxes.

Cascade RPN (Vu et al., NeurIPS 2019), section 3.2: the 3 x 3 taps at a cell are the centre, the
corners and the edge midpoints of that cell's box. For a box (x1, y1, x2, y2) in image pixels on a
map of stride s they are the points

    y in {y1 / s, (y1 + y2) / 2s, y2 / s},    x in {x1 / s, (x1 + x2) / 2s, x2 / s}

in units of feature cells, where cell (row i, column j) is the point (i, j). A box with a coordinate
that is not finite samples nothing: its taps are put outside of every map.

Shape shorthand:

    N: number of images
    C_out: number of output channels
    H, W: height and width of the feature map
"""

import torch
from torch import Tensor

__all__ = [
    "TAPS",
    "axis_taps",
    "deform_offsets",
    "empty_result",
    "sampling_points",
]

TAPS = 9
# Outside of every map, yet small enough for float32 to keep offsets from it exact.
_OUTSIDE = -1e6


def empty_result(feature: Tensor, weight: Tensor) -> Tensor:
    """Return uninitialized memory for the result, (N, C_out, H, W) and channels-last.

    Operators fill it through views but return this tensor itself, because autograd does not allow
    in-place changes (such as an in-place ReLU) of a view that an operator returned.
    """
    return torch.empty(
        (feature.shape[0], weight.shape[0], feature.shape[2], feature.shape[3]),
        dtype=feature.dtype,
        device=feature.device,
        memory_format=torch.channels_last,
    )


def axis_taps(low: Tensor, high: Tensor, stride: float) -> Tensor:
    """Return the three taps of each box along one axis.

    Args:
        low: (...) x1 or y1 of the boxes, in image pixels.
        high: (...) x2 or y2.
        stride: number of image pixels per feature cell.

    Returns:
        (3, ...) positions in feature cells.
    """
    centre = (low + high) / 2
    taps = torch.stack([low, centre, high]) / stride
    return torch.where(centre.isfinite(), taps, _OUTSIDE)


def sampling_points(boxes: Tensor, stride: float) -> Tensor:
    """Return the nine taps of each box.

    Args:
        boxes: (..., 4) XYXY, in image pixels.
        stride: number of image pixels per feature cell.

    Returns:
        (..., 9, 2): y and x in feature cells, taps in row-major order.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    y = axis_taps(y1, y2, stride).movedim(0, -1)[..., :, None]
    x = axis_taps(x1, x2, stride).movedim(0, -1)[..., None, :]
    return torch.stack(torch.broadcast_tensors(y, x), dim=-1).flatten(-3, -2)


def deform_offsets(boxes: Tensor, stride: float, size: tuple[int, int]) -> Tensor:
    """Return the taps as offsets from the regular 3 x 3 grid, as deformable convolutions take them.

    Args:
        boxes: (N, H * W, 4) XYXY, in image pixels.
        stride: number of image pixels per feature cell.
        size: (H, W) of the feature map.

    Returns:
        (N, 18, H, W): dy, dx of tap 0, dy, dx of tap 1, ... to tap 8.
    """
    height, width = size

    def grid(y: tuple[int, int], x: tuple[int, int]) -> Tensor:
        axes = (torch.arange(*limits, device=boxes.device) for limits in (y, x))
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        return points.reshape(-1, 2).to(boxes.dtype)

    regular = grid((0, height), (0, width))[:, None] + grid((-1, 2), (-1, 2))
    offsets = sampling_points(boxes, stride) - regular  # (N, H * W, 9, 2)
    return offsets.reshape(boxes.shape[0], height, width, 2 * TAPS).permute(0, 3, 1, 2)
