"""One stage of Cascade RPN: from features and one box per cell to better boxes.

Shape shorthand:

    N: number of images
    C: number of channels
    L: number of levels
    Hi, Wi: height and width of level i
    R: number of cells of all levels together

Boxes are XYXY in image pixels; a level has one box per cell, row-major: (N, Hi*Wi, 4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor, nn

from ...layers import AdaptiveConv2d

__all__ = ["CascadeRPNStage", "StageOutput"]

# detectron2's bound on the predicted log scales; the reference applies it on both sides.
_LOG_SCALE_LIMIT = math.log(1000.0 / 16)


@dataclass(frozen=True)
class StageOutput:
    """Predictions of a stage, in float32; the lists have one entry per level.

    Attributes:
        boxes: (N, Hi*Wi, 4) boxes that the stage started from, without gradient.
        pred_deltas: (N, Hi*Wi, 4) predicted transformation of these boxes.
        pred_objectness_logits: (N, Hi*Wi); no entries if the stage does not predict objectness.
    """

    boxes: list[Tensor]
    pred_deltas: list[Tensor]
    pred_objectness_logits: list[Tensor]


class CascadeRPNStage(nn.Module):
    """A 3x3 convolution, ReLU, and 1x1 convolutions for deltas and objectness.

    The first stage uses a dilated convolution, which spans about as many cells as an anchor. Later
    stages use an adaptive convolution, which samples at the box of each cell. All levels share the
    weights.
    """

    _least_deltas: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        adaptive: bool,
        with_objectness: bool,
        bbox_reg_weights: tuple[float, float, float, float],
        dilation: int = 3,
    ) -> None:
        """Build the layers, with weights from N(0, 0.01) and biases 0.

        Args:
            in_channels: number of channels C, also of the hidden feature.
            adaptive: use an adaptive instead of a dilated convolution.
            with_objectness: predict objectness too.
            bbox_reg_weights: weights of (dx, dy, dw, dh) as in Box2BoxTransform, the inverse of
                the deltas' standard deviations.
            dilation: dilation of the convolution if it is not adaptive.

        Raises:
            ValueError: ``dilation`` or a weight is not positive.
        """
        super().__init__()
        if dilation < 1:
            raise ValueError(f"MODEL.CASCADE_RPN.DILATION is {dilation}; allowed: 1 or more")
        if len(bbox_reg_weights) != 4 or min(bbox_reg_weights) <= 0:
            raise ValueError(
                f"MODEL.CASCADE_RPN.BBOX_REG_WEIGHTS has the entry {bbox_reg_weights}; "
                "allowed: four positive numbers for each stage"
            )
        self.conv = (
            AdaptiveConv2d(in_channels, in_channels, bias=False)
            if adaptive
            else nn.Conv2d(in_channels, in_channels, 3, padding=dilation, dilation=dilation)
        )
        self.bbox_deltas = nn.Conv2d(in_channels, 4, 1)
        self.objectness = nn.Conv2d(in_channels, 1, 1) if with_objectness else None
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.01)
        self.box2box_transform = Box2BoxTransform(tuple(map(float, bbox_reg_weights)))
        least = [-math.inf, -math.inf, *(-_LOG_SCALE_LIMIT * w for w in bbox_reg_weights[2:])]
        self.register_buffer("_least_deltas", torch.tensor(least), persistent=False)

    @property
    def adaptive(self) -> bool:
        """True if the convolution samples at the boxes."""
        return isinstance(self.conv, AdaptiveConv2d)

    def forward(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor], strides: Sequence[int]
    ) -> tuple[list[Tensor], StageOutput]:
        """Run the stage on all levels.

        Args:
            features: L feature maps (N, C, Hi, Wi), from the backbone for the first stage and from
                the previous stage for the others.
            boxes: L tensors of (N, Hi*Wi, 4).
            strides: stride of each level.

        Returns:
            The hidden features, (N, C, Hi, Wi) each, which the next stage takes ("bridged
            feature"), and the predictions.
        """
        hidden, deltas, logits = [], [], []
        for x, boxes_i, stride in zip(features, boxes, strides, strict=True):
            x = self.conv(x, boxes_i, stride=stride) if self.adaptive else self.conv(x)
            hidden.append(F.relu_(x))
            # (N, 4, Hi, Wi) -> (N, Hi*Wi, 4)
            deltas.append(self.bbox_deltas(x).flatten(2).transpose(1, 2).float())
            if self.objectness is not None:
                # (N, 1, Hi, Wi) -> (N, Hi*Wi)
                logits.append(self.objectness(x).flatten(1).float())
        return hidden, StageOutput(list(boxes), deltas, logits)

    def decode(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Transform boxes by deltas.

        Width and height change at most by a factor of 1000/16 in both directions; detectron2's
        transform alone has no limit for shrinking.

        Args:
            deltas: (..., 4).
            boxes: (..., 4), of the same shape.

        Returns:
            (..., 4), not clipped to the image.
        """
        deltas = torch.maximum(deltas, self._least_deltas)
        moved = self.box2box_transform.apply_deltas(deltas.reshape(-1, 4), boxes.reshape(-1, 4))
        return moved.view(deltas.shape)

    def decode_all(self, output: StageOutput) -> list[Tensor]:
        """Return the predicted boxes of every level, (N, Hi*Wi, 4) each."""
        return _split(self._decode_levels(output), output)

    @torch.no_grad()
    def refine(self, output: StageOutput, image_sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return the boxes that the next stage starts from: decoded, clipped, without gradient.

        Every cell keeps its box. Boxes outside of the image shrink to nothing on its border, and
        those with a NaN shrink to nothing at the origin.

        Args:
            output: predictions of this stage.
            image_sizes: (height, width) of the N images without their padding.

        Returns:
            L tensors of (N, Hi*Wi, 4).
        """
        boxes = torch.nan_to_num(self._decode_levels(output), nan=0.0).clamp(min=0)
        # (N, 2) height, width -> (N, 1, 4)
        limits = torch.stack([_on_device(size, boxes) for size in image_sizes])
        limits = limits[:, None].flip(2).repeat(1, 1, 2)
        return _split(torch.minimum(boxes, limits), output)

    def _decode_levels(self, output: StageOutput) -> Tensor:
        """Return the predicted boxes (N, R, 4) of all levels, decoded together."""
        return self.decode(torch.cat(output.pred_deltas, dim=1), torch.cat(output.boxes, dim=1))


def _split(boxes: Tensor, output: StageOutput) -> list[Tensor]:
    """(N, R, 4) -> (N, Hi*Wi, 4) of each level."""
    return list(boxes.split([b.shape[1] for b in output.boxes], dim=1))


def _on_device(size: Sequence[int] | Tensor, like: Tensor) -> Tensor:
    """Return the (2,) height and width of an image as numbers of the dtype of ``like``.

    Under tracing and export detectron2's sizes are tensors. Otherwise they are filled in on the
    device, since a copy from the host would wait for it.
    """
    if isinstance(size, Tensor):
        return size.to(like)
    return torch.stack([like.new_full((), side) for side in size])
