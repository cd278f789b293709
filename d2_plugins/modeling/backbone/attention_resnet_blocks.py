"""ResNet's stem and blocks with attention, and with a mask that hides the padding of a batch.

What ``valid`` is for: see :mod:`d2_plugins.modeling.backbone.attention_resnet`. It is (N, 1, H, W),
1 on the cells of each image and 0 on the padding, at the resolution of ``x``; None is all ones.

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
    """detectron2's stem, which can keep the padding out of its max pooling and of its output."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, 3, Hi, Wi) -> (N, C, Hi/4, Wi/4); ``x`` is zero on the padding."""
        # Zero is below all that ReLU passes: max pooling ignores it like its own padding.
        x = F.relu_(zero_padding_(self.conv1(x), subsample_mask(valid, 2)))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        return zero_padding_(x, subsample_mask(valid, 4))


class _AttentionBlock(CNNBlockBase):
    """Stands before a block of detectron2, which it gives an attention module."""

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
            in_channels: of the input.
            out_channels: C of the output.
            attention: makes the attention module for C channels; None is a plain block.
            options: as detectron2's block.
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

        With ``valid``, the padding of ``x`` must be zero, and that of the output is.
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

        The padding of ``x`` and of the output may hold anything: only the 3x3 convolution, in the
        middle and a quarter as wide, looks at neighbours.
        """
        middle = subsample_mask(valid, self.conv1.stride[0])
        out = F.relu_(zero_padding_(self.conv1(x), middle))
        out = F.relu_(self.conv2(out))
        out = self.conv3(out)
        if self.attention is not None:
            out = self.attention(out, subsample_mask(valid, self.stride))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)
