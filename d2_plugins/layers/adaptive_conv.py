"""The adaptive convolution of Cascade RPN: a 3 x 3 convolution that samples at each cell's box.

See :mod:`.adaptive_conv_geometry` for where the taps are. Samples are bilinear and zero outside of
the map; no gradient goes into the boxes. (Vu et al., NeurIPS 2019, section 3.2.)

Shapes: N images, C channels, H, W of the feature map.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from .adaptive_conv_geometry import check_inputs, deform_offsets

__all__ = ["AdaptiveConv2d", "Backend", "adaptive_conv2d"]

Backend = Literal["auto", "reference", "gather", "triton"]


def adaptive_conv2d(
    feature: Tensor,
    boxes: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: float,
    backend: Backend = "auto",
) -> Tensor:
    """3 x 3 convolution whose taps at each cell are the centre, corners and edges of a box.

    Args:
        feature: (N, C_in, H, W).
        boxes: (N, H * W, 4) XYXY in image pixels, one box per cell, row-major. No gradient.
        weight: (C_out, C_in, 3, 3).
        bias: (C_out,) or None.
        stride: image pixels per feature cell.
        backend: which implementation.

    Returns:
        (N, C_out, H, W).

    Raises:
        ValueError: shapes that do not fit.
    """
    check_inputs(feature, boxes, weight, bias)
    boxes = boxes.detach().to(feature.dtype)
    offsets = deform_offsets(boxes, stride, (feature.shape[2], feature.shape[3]))
    return deform_conv2d(feature, offsets, weight, bias, padding=1)


class AdaptiveConv2d(nn.Module):
    """:func:`adaptive_conv2d` with its weight, which all levels of a pyramid may share.

    The stride is therefore an argument of :meth:`forward`. Weights start as N(0, 0.01), the bias
    at zero, as in Cascade RPN.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = False,
        backend: Backend = "auto",
    ) -> None:
        """Args:
        in_channels: C_in.
        out_channels: C_out.
        bias: add a learned bias.
        backend: see :func:`adaptive_conv2d`.
        """
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from N(0, 0.01); zero the bias."""
        nn.init.normal_(self.weight, std=0.01)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, feature: Tensor, boxes: Tensor, *, stride: float) -> Tensor:
        """(N, C_in, H, W) and (N, H * W, 4) -> (N, C_out, H, W), see :func:`adaptive_conv2d`."""
        return adaptive_conv2d(
            feature, boxes, self.weight, self.bias, stride=stride, backend=self.backend
        )

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        text = f"{self.in_channels}, {self.out_channels}, bias={self.bias is not None}"
        return text if self.backend == "auto" else f"{text}, backend={self.backend!r}"
