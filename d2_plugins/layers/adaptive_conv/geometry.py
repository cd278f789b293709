"""Where the nine taps of the adaptive convolution are, as pure functions of the boxes.

Cascade RPN (Vu et al., NeurIPS 2019), section 3.2: the 3 x 3 taps at a cell are the centre, the
corners and the edge midpoints of that cell's box. For a box (x1, y1, x2, y2) in image pixels on a
map of stride s they are the points

    y in {y1 / s, (y1 + y2) / 2s, y2 / s},    x in {x1 / s, (x1 + x2) / 2s, x2 / s}

in units of feature cells, where cell (row i, column j) is the point (i, j). A box with a coordinate
that is not finite samples nothing: its taps are put outside of every map.

Shapes: N images, C channels, H, W of the feature map.
"""

import torch
from torch import Tensor

__all__ = [
    "TAPS",
    "axis_taps",
    "check_inputs",
    "deform_offsets",
    "empty_result",
    "sampling_points",
]

TAPS = 9
# Outside of every map, yet small enough for float32 to keep offsets from it exact.
_OUTSIDE = -1e6


def check_inputs(
    feature: Tensor, boxes: Tensor, weight: Tensor, bias: Tensor | None, stride: float
) -> None:
    """Raise for arguments that no adaptive convolution takes.

    Raises:
        ValueError: a shape, dtype or stride does not fit; says what is expected.
    """
    if stride <= 0:
        raise ValueError(f"stride must be positive, not {stride}")
    if feature.dim() != 4 or 0 in feature.shape[1:]:
        raise ValueError(
            f"feature must have shape (N, C, H, W) with no C, H, W of 0, not {tuple(feature.shape)}"
        )
    images, channels, height, width = feature.shape
    if boxes.shape != (images, height * width, 4):
        raise ValueError(
            f"boxes must have shape (N, H * W, 4) = {(images, height * width, 4)} for a feature "
            f"of shape {tuple(feature.shape)}, not {tuple(boxes.shape)}"
        )
    if weight.dim() != 4 or weight.shape[1:] != (channels, 3, 3):
        raise ValueError(
            f"weight must have shape (C_out, {channels}, 3, 3), not {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"bias must have shape ({weight.shape[0]},), not {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != feature.dtype:
            raise ValueError(
                f"{name} must have the dtype of feature, {feature.dtype}, not {tensor.dtype}"
            )


def empty_result(feature: Tensor, weight: Tensor) -> Tensor:
    """Memory for the result, (N, C_out, H, W) and channels-last.

    To be filled through views, but returned itself: autograd forbids to change a view that an
    operator returned in place, as an in-place ReLU does.
    """
    return torch.empty(
        (feature.shape[0], weight.shape[0], feature.shape[2], feature.shape[3]),
        dtype=feature.dtype,
        device=feature.device,
        memory_format=torch.channels_last,
    )


def axis_taps(low: Tensor, high: Tensor, stride: float) -> Tensor:
    """The three taps of each box along one axis.

    Args:
        low: (...) x1 or y1 of the boxes, in image pixels.
        high: (...) x2 or y2.
        stride: image pixels per feature cell.

    Returns:
        (3, ...) positions in feature cells.
    """
    centre = (low + high) / 2
    taps = torch.stack([low, centre, high]) / stride
    return torch.where(centre.isfinite(), taps, _OUTSIDE)


def sampling_points(boxes: Tensor, stride: float) -> Tensor:
    """The nine taps of each box.

    Args:
        boxes: (..., 4) XYXY, in image pixels.
        stride: image pixels per feature cell.

    Returns:
        (..., 9, 2): y and x in feature cells, taps in row-major order.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    y = axis_taps(y1, y2, stride).movedim(0, -1)[..., :, None]
    x = axis_taps(x1, x2, stride).movedim(0, -1)[..., None, :]
    return torch.stack(torch.broadcast_tensors(y, x), dim=-1).flatten(-3, -2)


def deform_offsets(boxes: Tensor, stride: float, size: tuple[int, int]) -> Tensor:
    """The taps as offsets from the regular 3 x 3 grid, as deformable convolutions take them.

    Args:
        boxes: (N, H * W, 4) XYXY, in image pixels.
        stride: image pixels per feature cell.
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
