"""One stage of Cascade RPN: from features and a box per cell to better boxes.

Shapes: N images, C channels, L levels, Hi, Wi of level i; a stage sees one box per cell, row-major
over the map: (N, Hi*Wi, 4), XYXY in image pixels.
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
    """What a stage predicts, in float32; lists have one entry per level.

    Attributes:
        boxes: the boxes the stage started from, (N, Hi*Wi, 4), without gradient.
        deltas: how to move them, (N, Hi*Wi, 4).
        logits: objectness, (N, Hi*Wi); empty where the stage does not score.
    """

    boxes: list[Tensor]
    deltas: list[Tensor]
    logits: list[Tensor]


class CascadeRPNStage(nn.Module):
    """A 3x3 convolution, ReLU, and 1x1 convolutions for deltas and objectness.

    The first stage convolves with a dilation, which spans an anchor of about that many cells to
    each side; later stages sample at the box of each cell (adaptive convolution). All levels share
    the weights.
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
        """Build and initialise the layers: weights from N(0, 0.01), biases 0.

        Args:
            in_channels: C, also of the hidden feature.
            adaptive: convolve adaptively, else with ``dilation``.
            with_objectness: also score.
            bbox_reg_weights: of (dx, dy, dw, dh), as in Box2BoxTransform: the inverse of the
                deltas' standard deviations.
            dilation: of a stage that is not adaptive.

        Raises:
            ValueError: ``dilation`` or a weight is not positive.
        """
        super().__init__()
        if dilation < 1:
            raise ValueError(f"MODEL.CASCADE_RPN.DILATION must be at least 1, not {dilation}")
        if len(bbox_reg_weights) != 4 or min(bbox_reg_weights) <= 0:
            raise ValueError(
                "MODEL.CASCADE_RPN.BBOX_REG_WEIGHTS must hold four positive numbers for each "
                f"stage, not {bbox_reg_weights}"
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
        """Whether the convolution samples at the boxes."""
        return isinstance(self.conv, AdaptiveConv2d)

    def forward(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor], strides: Sequence[int]
    ) -> tuple[list[Tensor], StageOutput]:
        """Run the stage on all levels.

        Args:
            features: L maps of (N, C, Hi, Wi); of the backbone for the first stage, of the stage
                before for the others.
            boxes: L tensors of (N, Hi*Wi, 4).
            strides: of the L levels.

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
        """Move boxes by deltas.

        Width and height change by a factor within 1000/16 either way; detectron2's transform alone
        would let them shrink to nothing.

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
        """The moved boxes of every level, (N, Hi*Wi, 4) each."""
        return [self.decode(d, b) for d, b in zip(output.deltas, output.boxes, strict=True)]

    @torch.no_grad()
    def refine(self, output: StageOutput, image_sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The boxes the next stage starts from: moved, clipped, and without gradient.

        Every cell keeps its box; those that leave the image shrink to nothing on its border, and
        those that are not a number shrink to nothing at the origin.

        Args:
            output: of this stage.
            image_sizes: (height, width) of the N images without their padding.

        Returns:
            L tensors of (N, Hi*Wi, 4).
        """
        # Under tracing detectron2's sizes are tensors already.
        sizes = [s if isinstance(s, Tensor) else torch.tensor(s) for s in image_sizes]
        # (N, 2) height, width -> (N, 1, 4)
        limits = torch.stack(sizes)[:, None, [1, 0, 1, 0]].to(output.boxes[0])
        return [
            torch.minimum(torch.nan_to_num(boxes, nan=0.0).clamp(min=0), limits)
            for boxes in self.decode_all(output)
        ]
