"""Convolutions, stem and residual blocks of CSPNet (Wang et al. 2020, arXiv 1911.11929).

Convolutions are detectron2's, with norm and activation as modules of their own, so that FrozenBN,
SyncBN and the like replace a norm and nothing else. Attention is a child called ``attention`` that
exists only where it is on; no other key depends on it.

``valid``, wherever it appears, is (N, 1, H, W): 1 on the cells of each image and 0 on the padding
of the batch, at the resolution of ``x``; None is all ones. With it a stem or stage expects zeros on
the padding of ``x``, leaves zeros there, and gives on every valid cell what the image alone would
give: convolutions see the padding as they see what lies beyond the border, pooling leaves it out.
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
    """detectron2's Conv2d with a norm, then an activation module (``act``) or none."""

    def __init__(self, *args: Any, act: nn.Module | None = None, **options: Any) -> None:
        """As Conv2d, whose own ``activation`` stays unused: the mask goes before it."""
        super().__init__(*args, **options)
        self.act = act

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'), zero where ``valid`` (of the output) is."""
        x = zero_padding_(super().forward(x), valid)
        return x if self.act is None else self.act(x)


@dataclass(frozen=True)
class ConvFactory:
    """Makes the network's convolutions, each with its norm and activation.

    Attributes:
        norm: FrozenBN, BN, SyncBN or GN, or a function from channels to a norm module.
        activation: makes one activation module.
    """

    norm: str | Callable[[int], nn.Module]
    activation: Callable[[], nn.Module]

    def __post_init__(self) -> None:
        if isinstance(self.norm, str) and self.norm not in _NORMS:
            raise ValueError(
                f"MODEL.CSPNET.NORM = '{self.norm}' is unknown. Allowed: {', '.join(_NORMS)}."
            )

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
        """Convolution without bias, then norm, then activation if ``activate``.

        Weights are drawn from N(0, 2 / fan_out).

        Args:
            in_channels: of the input.
            out_channels: of the output.
            kernel_size: of both sides.
            stride: of both sides.
            groups: wished for; reduced to the greatest divisor that splits the channels evenly.
            activate: end with the activation.
        """
        conv = ConvNormAct(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            # For the even kernel of the "focus" stem, 6x6, this halves even sizes exactly.
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
            # detectron2's 32 groups wherever 32 divides the channels; not all widths here are such.
            return nn.GroupNorm(math.gcd(_MAX_NORM_GROUPS, channels), channels)
        return get_norm(self.norm, channels)


def _start_as_identity(conv: Conv2d) -> None:
    """Zero the norm's weight: the block's residual starts at zero (Goyal et al. 2017, 5.1)."""
    # A FrozenBN never leaves zero again; its weights come from a checkpoint.
    if isinstance(conv.norm.weight, nn.Parameter):
        nn.init.zeros_(conv.norm.weight)


class Stem(CNNBlockBase):
    """Convolutions on the image, and possibly max pooling."""

    def __init__(self, in_channels: int, spec: StemSpec, *, conv: ConvFactory) -> None:
        """Build ``conv1``, ``conv2``, ...

        Args:
            in_channels: of the image.
            spec: what to build.
            conv: makes convolutions.
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

        Sizes are rounded up, but for an even kernel, which needs even sizes.
        """
        for layer in self.children():
            valid = subsample_mask(valid, layer.stride[0])
            x = layer(x, valid)
        if not self.pool:
            return x
        if valid is None:
            return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        # Beyond the border, pooling sees -inf.
        x = F.max_pool2d(x.masked_fill(valid.eq(0), -math.inf), kernel_size=3, stride=2, padding=1)
        return x.masked_fill_(valid[:, :, ::2, ::2].eq(0), 0)


class AttentionHost(CNNBlockBase):
    """A block or a stage that may hold one attention module, in one of several positions."""

    _position: str | None = None

    def host(self, attention: StageAttention | None, channels: Mapping[str, int]) -> None:
        """Add the attention if its position is one of ``channels``' (position -> channels)."""
        if attention is not None and attention.position in channels:
            self._position = attention.position
            self.attention = attention.build(channels[attention.position])

    def attend(self, position: str, x: Tensor, valid: Tensor | None) -> Tensor:
        """The attention on ``x`` if it is the one of ``position``, else ``x``."""
        return self.attention(x, valid) if position == self._position else x

    def freeze(self) -> "CNNBlockBase":
        """As detectron2's, but attention stays trainable and keeps its norm."""
        freeze_but_attention(self)
        return self


class BottleneckBlock(AttentionHost):
    """1x1, 3x3, 1x1 without activation, shortcut, activation."""

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
            channels: of input and output.
            hidden_channels: of the 3x3 convolution.
            conv: makes convolutions.
            groups: of the 3x3 convolution.
            attention: "block_mid" is behind the 3x3, "block_out" before the shortcut is added.
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
    """1x1, 3x3, shortcut; nothing behind it."""

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
            channels: of input and output.
            hidden_channels: of the 1x1 convolution.
            conv: makes convolutions.
            groups: of the 3x3 convolution.
            attention: "block_mid" is between the two, "block_out" before the shortcut is added,
                behind the activation.
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
