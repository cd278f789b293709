"""Where the nine taps of the adaptive convolution are, as pure functions of the boxes.

Cascade RPN (Vu et al., NeurIPS 2019), section 3.2: the 3 x 3 taps at a cell are the centre, the
corners and the edge midpoints of that cell's box. For a box (x1, y1, x2, y2) in image pixels on a
map of stride s, tap (ky, kx), ky and kx in {-1, 0, 1}, is the point

    y = (y1 + y2) / 2s + ky (y2 - y1) / 2s,    x = (x1 + x2) / 2s + kx (x2 - x1) / 2s

in units of feature cells, where cell (row i, column j) is the point (i, j).

Shapes: N images, C channels, H, W of the feature map, P = H * W cells in row-major order.
"""

import torch
from torch import Tensor

__all__ = ["TAPS", "check_inputs", "deform_offsets", "sampling_points"]

TAPS = 9
# A coordinate that is outside of every map, yet small enough for float32 to keep its whole part.
_OUTSIDE = -1e6


def check_inputs(feature: Tensor, boxes: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise for shapes that no adaptive convolution takes.

    Raises:
        ValueError: a shape does not fit; the message names the argument and what is expected.
    """
    if feature.dim() != 4:
        raise ValueError(f"feature must have shape (N, C, H, W), not {tuple(feature.shape)}")
    images, channels, height, width = feature.shape
    if tuple(boxes.shape) != (images, height * width, 4):
        raise ValueError(
            f"boxes must have shape (N, H * W, 4) = {(images, height * width, 4)} for a feature "
            f"of shape {tuple(feature.shape)}, not {tuple(boxes.shape)}"
        )
    if weight.dim() != 4 or tuple(weight.shape[1:]) != (channels, 3, 3):
        raise ValueError(
            f"weight must have shape (C_out, {channels}, 3, 3), not {tuple(weight.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias must have shape ({weight.shape[0]},), not {tuple(bias.shape)}")


def _centre_and_half_size(boxes: Tensor, stride: float) -> tuple[Tensor, Tensor]:
    """(..., 4) boxes -> (..., 2) centres and half sizes, y before x, in feature cells."""
    corners = boxes.flip(-1) / (2 * stride)  # (y2, x2, y1, x1)
    far, near = corners[..., :2], corners[..., 2:]
    return near + far, far - near


def _tap_steps(like: Tensor) -> Tensor:
    """(9, 2): (ky, kx) of each tap, row-major."""
    step = torch.arange(-1, 2, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(step, step, indexing="ij"), dim=-1).reshape(TAPS, 2)


def sampling_points(boxes: Tensor, stride: float) -> Tensor:
    """The nine taps of each box.

    Taps without a finite position are put outside of every map, where the feature is zero.

    Args:
        boxes: (..., 4) XYXY, in image pixels.
        stride: image pixels per feature cell.

    Returns:
        (..., 9, 2): y and x in feature cells, taps in row-major order.
    """
    centre, half = _centre_and_half_size(boxes, stride)
    points = centre[..., None, :] + half[..., None, :] * _tap_steps(boxes)
    return torch.where(points.isfinite(), points, _OUTSIDE)


def deform_offsets(boxes: Tensor, stride: float, size: tuple[int, int]) -> Tensor:
    """The taps as offsets from the regular 3 x 3 grid, as deformable convolutions take them.

    Args:
        boxes: (N, P, 4) XYXY, in image pixels.
        stride: image pixels per feature cell.
        size: (H, W) of the feature map.

    Returns:
        (N, 18, H, W): dy, dx of tap 0, dy, dx of tap 1, ... to tap 8.
    """
    height, width = size
    rows = torch.arange(height, device=boxes.device, dtype=boxes.dtype)
    columns = torch.arange(width, device=boxes.device, dtype=boxes.dtype)
    cells = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
    regular = cells.reshape(height * width, 1, 2) + _tap_steps(boxes)
    offsets = sampling_points(boxes, stride) - regular  # (N, P, 9, 2)
    return offsets.reshape(-1, height, width, 2 * TAPS).permute(0, 3, 1, 2)
