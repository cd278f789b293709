"""Convolutions, stem and residual blocks of CSPNet (Wang et al. 2020, arXiv 1911.11929).

Convolutions are detectron2's. Norm and activation are separate modules, so that a conversion to
FrozenBN or SyncBN replaces only the norm. Attention is a child named ``attention`` that exists only
where it is switched on; all other state_dict keys are the same with and without it.

The mask ``valid`` (N, 1, H, W) is 1 on the cells of each image and 0 on the padding of the batch,
at the resolution of ``x``; None means no padding. With a mask, stems and stages expect zeros on the
padding of ``x`` and output zeros there. Convolutions then treat the padding like the area outside
an image, and pooling ignores it, so that every valid cell has the value that the image alone would
give.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from ...layers.padding import subsample_mask, zero_padding_
from .attention_plan import StageAttention, freeze_but_attention
from .cspnet_archs import StemSpec

__all__ = ["AttentionHost", "BottleneckBlock", "ConvFactory", "ConvNormAct", "DarkBlock", "Stem"]

_NORMS = ("FrozenBN", "BN", "SyncBN", "GN")
_MAX_NORM_GROUPS = 32


class ConvNormAct(Conv2d):
    """detectron2's Conv2d with a norm and an optional activation module (``act``)."""

    def __init__(self, *args: Any, act: nn.Module | None = None, **options: Any) -> None:
        """Take Conv2d's arguments; ``act`` replaces its ``activation``, to come after the mask."""
        super().__init__(*args, **options)
        self.act = act

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'), zero where ``valid`` (at output resolution) is zero."""
        x = zero_padding_(super().forward(x), valid)
        return x if self.act is None else self.act(x)


@dataclass(frozen=True)
class ConvFactory:
    """Factory of the network's convolutions, each with its norm and activation.

    Attributes:
        norm: FrozenBN, BN, SyncBN or GN, or a function from channels to a norm module.
        activation: function that returns a new activation module.
    """

    norm: str | Callable[[int], nn.Module]
    activation: Callable[[], nn.Module]

    def __post_init__(self) -> None:
        if isinstance(self.norm, str) and self.norm not in _NORMS:
            raise ValueError(f"MODEL.CSPNET.NORM is '{self.norm}'; allowed: {', '.join(_NORMS)}")

    def __call__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        activate: bool = True,
    ) -> ConvNormAct:
        """Build a convolution without bias, its norm and its activation.

        Weights are drawn from N(0, 2 / fan_out).

        Args:
            in_channels: number of input channels.
            out_channels: number of output channels.
            kernel_size: height and width of the kernel.
            stride: stride in both directions.
            groups: requested number of groups; reduced to the greatest common divisor with the
                numbers of channels.
            activate: end with the activation.
        """
        conv = ConvNormAct(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            # With the 6x6 kernel of the "focus" stem, this padding halves even sizes exactly.
            padding=(kernel_size - 1) // 2,
            groups=math.gcd(groups, in_channels, out_channels),
            bias=False,
            norm=self._make_norm(out_channels),
            act=self.activation() if activate else None,
        )
        c2_msra_fill(conv)
        return conv

    def _make_norm(self, channels: int) -> nn.Module:
        if self.norm == "GN":
            # detectron2 has 32 groups, which do not divide all widths of this network.
            return nn.GroupNorm(math.gcd(_MAX_NORM_GROUPS, channels), channels)
        return get_norm(self.norm, channels)


def _start_as_identity(conv: Conv2d) -> None:
    """Zero the norm's weight: the block starts as an identity (Goyal et al. 2017, section 5.1)."""
    # Not for FrozenBN, whose weight would stay zero: it is a buffer, filled from a checkpoint.
    if isinstance(conv.norm.weight, nn.Parameter):
        nn.init.zeros_(conv.norm.weight)


class Stem(CNNBlockBase):
    """Convolutions on the image, with or without max pooling."""

    def __init__(self, in_channels: int, spec: StemSpec, *, conv: ConvFactory) -> None:
        """Build ``conv1``, ``conv2``, ...

        Args:
            in_channels: number of channels of the image.
            spec: description of the stem.
            conv: factory of the convolutions.
        """
        super().__init__(in_channels, spec.channels[-1], spec.total_stride)
        self.pool = spec.pool
        for i, channels in enumerate(spec.channels):
            stride = spec.stride if i == 0 else 1
            self.add_module(
                f"conv{i + 1}", conv(in_channels, channels, spec.kernel_size, stride=stride)
            )
            in_channels = channels

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride).

        Sizes are rounded up; an even kernel needs even sizes.
        """
        for layer in self.children():
            valid = subsample_mask(valid, layer.stride[0])
            x = layer(x, valid)
        if not self.pool:
            return x
        if valid is None:
            return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        # Max pooling pads with -inf: do the same on the padding of the batch.
        x = F.max_pool2d(x.masked_fill(valid.eq(0), -math.inf), kernel_size=3, stride=2, padding=1)
        return x.masked_fill_(valid[:, :, ::2, ::2].eq(0), 0)


class AttentionHost(CNNBlockBase):
    """Base class of blocks and stages with an optional attention module in one position."""

    _position: str | None = None

    def host(self, attention: StageAttention | None, channels: Mapping[str, int]) -> None:
        """Add the attention if its position is a key of ``channels`` (position to channels)."""
        if attention is not None and attention.position in channels:
            self._position = attention.position
            self.attention = attention.build(channels[attention.position])

    def attend(self, position: str, x: Tensor, valid: Tensor | None) -> Tensor:
        """Apply the attention to ``x`` if it is at ``position``; otherwise return ``x``."""
        return self.attention(x, valid) if position == self._position else x

    def freeze(self) -> "CNNBlockBase":
        """Freeze everything except the attention, which also keeps its norm."""
        freeze_but_attention(self)
        return self


class BottleneckBlock(AttentionHost):
    """Residual block: 1x1, 3x3, 1x1 without activation, shortcut, activation."""

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        *,
        conv: ConvFactory,
        groups: int = 1,
        attention: StageAttention | None = None,
    ) -> None:
        """Build the block.

        Args:
            channels: number of input and output channels.
            hidden_channels: number of channels of the 3x3 convolution.
            conv: factory of the convolutions.
            groups: number of groups of the 3x3 convolution.
            attention: attention of the stage, used here at "block_mid" (after the 3x3) or
                "block_out" (before the shortcut is added).
        """
        super().__init__(channels, channels, 1)
        self.conv1 = conv(channels, hidden_channels)
        self.conv2 = conv(hidden_channels, hidden_channels, 3, groups=groups)
        self.conv3 = conv(hidden_channels, channels, activate=False)
        self.activation = conv.activation()
        _start_as_identity(self.conv3)
        self.host(attention, {"block_mid": hidden_channels, "block_out": channels})

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        y = self.conv2(self.conv1(x, valid))
        y = self.conv3(self.attend("block_mid", y, valid))
        return self.activation(self.attend("block_out", y, valid) + x)


class DarkBlock(AttentionHost):
    """Residual block of DarkNet: 1x1, 3x3, shortcut, without an activation at the end."""

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        *,
        conv: ConvFactory,
        groups: int = 1,
        attention: StageAttention | None = None,
    ) -> None:
        """Build the block.

        Args:
            channels: number of input and output channels.
            hidden_channels: number of output channels of the 1x1 convolution.
            conv: factory of the convolutions.
            groups: number of groups of the 3x3 convolution.
            attention: attention of the stage, used here at "block_mid" (between the two
                convolutions) or "block_out" (after the activation, before the shortcut is added).
        """
        super().__init__(channels, channels, 1)
        self.conv1 = conv(channels, hidden_channels)
        self.conv2 = conv(hidden_channels, channels, 3, groups=groups)
        _start_as_identity(self.conv2)
        self.host(attention, {"block_mid": hidden_channels, "block_out": channels})

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        y = self.conv2(self.attend("block_mid", self.conv1(x, valid), valid))
        return self.attend("block_out", y, valid) + x
