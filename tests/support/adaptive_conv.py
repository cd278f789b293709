"""Boxes and a gradient helper for the tests of the adaptive convolution."""

from collections.abc import Callable

import torch
from torch import Tensor


def cell_boxes(images: int, height: int, width: int, stride: float, side: float) -> Tensor:
    """Return square boxes (N, H * W, 4) float64 of ``side`` pixels, each centred on its cell."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = torch.stack([x, y], dim=-1).reshape(-1, 2).double() * stride
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=-1)
    return boxes.expand(images, -1, -1).clone()


def jittered_boxes(images: int, height: int, width: int, stride: float) -> Tensor:
    """Return boxes near their cells; some reach out of the map, and some are inverted."""
    boxes = cell_boxes(images, height, width, stride, 5 * stride)
    return boxes + torch.randn_like(boxes) * 2 * stride


def non_finite_boxes(height: int, width: int) -> tuple[Tensor, list[int]]:
    """Return the boxes of one image, and the cells whose box is not finite."""
    boxes = jittered_boxes(1, height, width, 4)
    boxes[0, 0, 0] = torch.nan
    boxes[0, 1, 3] = torch.inf
    boxes[0, 2] = torch.tensor([-torch.inf, -torch.inf, torch.inf, torch.inf])
    boxes[0, 3, 1] = -torch.inf
    return boxes, [0, 1, 2, 3]


def with_gradients(
    function: Callable[..., Tensor], grad: Tensor | None, *inputs: Tensor
) -> list[Tensor]:
    """Return the result of a function and the gradients of its inputs; ``grad`` None means ones."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    out.backward(torch.ones_like(out) if grad is None else grad.to(out.dtype))
    return [out.detach(), *[x.grad for x in inputs]]
