"""ResNet's stem and blocks with attention, and with a mask that hides the padding of a batch.

The mask ``valid`` (N, 1, H, W) is 1 on the cells of each image and 0 on the padding, at the
resolution of ``x``; None means no padding. :mod:`.attention_resnet` explains its purpose.

Shapes: N images, C channels, Hi, Wi of the images, H, W of a feature map.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn

from ...layers.padding import subsample_mask, zero_padding_
from .attention_plan import freeze_but_attention

__all__ = ["AttentionBasicBlock", "AttentionBottleneckBlock", "PaddingAwareStem"]


class PaddingAwareStem(BasicStem):
    """detectron2's stem, with the padding left out of its max pooling and of its output."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, 3, Hi, Wi) -> (N, C, Hi/4, Wi/4); ``x`` must be zero on the padding."""
        # After ReLU no value is below zero, so max pooling ignores the zeros of the padding.
        x = F.relu_(zero_padding_(self.conv1(x), subsample_mask(valid, 2)))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        return zero_padding_(x, subsample_mask(valid, 4))


class _AttentionBlock(CNNBlockBase):
    """Mixin that adds an attention module to a block of detectron2."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        attention: Callable[[int], nn.Module] | None = None,
        **options: Any,
    ) -> None:
        """Build the block.

        Args:
            in_channels: number of input channels.
            out_channels: number of output channels.
            attention: function from channels to the attention module; None for a plain block.
            options: other arguments of detectron2's block.
        """
        super().__init__(in_channels, out_channels, **options)
        self.attention = None if attention is None else attention(out_channels)

    def freeze(self) -> "CNNBlockBase":
        """Freeze everything but the attention."""
        freeze_but_attention(self)
        return self


class AttentionBasicBlock(_AttentionBlock, BasicBlock):
    """BasicBlock (ResNet-18 and -34) with attention after its second norm."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C', H/stride, W/stride).

        With ``valid``, the padding must be zero in ``x`` and is zero in the output.
        """
        inside = subsample_mask(valid, self.stride)
        out = F.relu_(zero_padding_(self.conv1(x), inside))
        out = self.conv2(out)
        if self.attention is not None:
            out = self.attention(out, inside)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(zero_padding_(out, inside))


class AttentionBottleneckBlock(_AttentionBlock, BottleneckBlock):
    """BottleneckBlock (ResNet-50 and deeper, ResNeXt) with attention after its third norm."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C', H/stride, W/stride).

        The padding of ``x`` and of the output may have any values: only the 3x3 convolution reads
        neighbouring cells, and its input is set to zero on the padding.
        """
        middle = subsample_mask(valid, self.conv1.stride[0])
        out = F.relu_(zero_padding_(self.conv1(x), middle))
        out = F.relu_(self.conv2(out))
        out = self.conv3(out)
        if self.attention is not None:
            out = self.attention(out, subsample_mask(valid, self.stride))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)
