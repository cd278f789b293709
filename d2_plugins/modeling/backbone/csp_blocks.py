"""Stem, blocks and stages of CSPNet (Wang et al. 2020, arXiv 1911.11929, section 3.2).

A cross stage widens its input by one 1x1 convolution and splits the result: one half crosses the
stage untouched, the other runs through the blocks; a transition fuses both again. The authors'
networks have two 1x1 convolutions in parallel instead of one that is split: the same map, since
the norm works channel by channel.

Convolutions are detectron2's, with norm and activation as modules of their own, so that FrozenBN,
SyncBN and the like replace a norm and nothing else. Attention is a child called ``attention`` that
exists only where it is on; no other key depends on it.

``valid``, wherever it appears, is (N, 1, H, W): 1 on the cells of each image and 0 on the padding
of the batch, at the resolution of ``x``; None is all ones. With it, every output on a valid cell is
what the image alone would give: convolutions see zeros beyond the image, as they do beyond the
batch, and pooling leaves the padding out.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from .attention_plan import StageAttention, freeze_but_attention
from .cspnet_archs import StageSpec, StemSpec

__all__ = [
    "BottleneckBlock",
    "ConvFactory",
    "CrossStage",
    "DarkBlock",
    "PlainStage",
    "Stem",
    "build_stage",
    "shrink_mask",
]

_NORMS = ("FrozenBN", "BN", "SyncBN", "GN")
_MAX_NORM_GROUPS = 32


def shrink_mask(valid: Tensor | None, stride: int) -> Tensor | None:
    """The mask behind a layer of ``stride``: cell i is valid if i * stride was."""
    return None if valid is None else valid[..., ::stride, ::stride]


def _masked(x: Tensor, valid: Tensor | None) -> Tensor:
    """``x`` with zeros on the padding: the input of a convolution wider than 1x1."""
    return x if valid is None else x * valid.to(x.dtype)


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
    ) -> Conv2d:
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
        conv = Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            # For the even kernel of the "focus" stem, 6x6, this halves even sizes exactly.
            padding=(kernel_size - 1) // 2,
            groups=math.gcd(groups, in_channels, out_channels),
            bias=False,
            norm=self._make_norm(out_channels),
            activation=self.activation() if activate else None,
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
        """(N, C, H, W) -> (N, C', H / stride, W / stride), sizes rounded up."""
        for layer in self.children():
            x = layer(_masked(x, valid))
            valid = shrink_mask(valid, layer.stride[0])
        if not self.pool:
            return x
        if valid is None:
            return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        # Beyond the border, pooling sees -inf; the cells without an image under them then get 0.
        x = F.max_pool2d(x.masked_fill(valid.eq(0), -math.inf), kernel_size=3, stride=2, padding=1)
        return x.masked_fill(valid[..., ::2, ::2].eq(0), 0)


class _AttentionHost(CNNBlockBase):
    """A block or a stage that may hold one attention module, in one of several positions."""

    _position: str | None = None

    def _host(self, attention: StageAttention | None, channels: Mapping[str, int]) -> None:
        """Add the attention if its position is one of ``channels``' (position -> channels)."""
        if attention is not None and attention.position in channels:
            self._position = attention.position
            self.attention = attention.build(channels[attention.position])

    def _attend(self, position: str, x: Tensor, valid: Tensor | None) -> Tensor:
        return self.attention(x, valid) if position == self._position else x

    def freeze(self) -> "CNNBlockBase":
        """As detectron2's, but attention stays trainable and keeps its norm."""
        freeze_but_attention(self)
        return self


class BottleneckBlock(_AttentionHost):
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
        self._host(attention, {"block_mid": hidden_channels, "block_out": channels})

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        y = self.conv2(_masked(self.conv1(x), valid))
        y = self.conv3(self._attend("block_mid", y, valid))
        return self.activation(self._attend("block_out", y, valid) + x)


class DarkBlock(_AttentionHost):
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
        self._host(attention, {"block_mid": hidden_channels, "block_out": channels})

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        y = self._attend("block_mid", self.conv1(x), valid)
        y = self.conv2(_masked(y, valid))
        return self._attend("block_out", y, valid) + x


_BLOCKS = {"bottleneck": BottleneckBlock, "dark": DarkBlock}


class _Stage(_AttentionHost):
    """What all stages share: the strided convolution at the start, and a row of blocks."""

    def _add_down(self, spec: StageSpec, conv: ConvFactory) -> int:
        """Add ``conv_down``, None at stride 1; returns the channels behind it."""
        if spec.stride == 1:
            self.conv_down = None
            return self.in_channels
        channels = spec.channels if spec.down_growth else self.in_channels
        self.conv_down = conv(self.in_channels, channels, 3, stride=spec.stride, groups=spec.groups)
        return channels

    def _add_blocks(
        self, spec: StageSpec, conv: ConvFactory, attention: StageAttention | None
    ) -> None:
        self.blocks = nn.ModuleList(
            _BLOCKS[spec.block](
                spec.block_channels,
                spec.hidden_channels,
                conv=conv,
                groups=spec.groups,
                attention=attention,
            )
            for _ in range(spec.depth)
        )

    def _run_down(self, x: Tensor, valid: Tensor | None) -> Tensor:
        return x if self.conv_down is None else self.conv_down(_masked(x, valid))

    def _run_blocks(self, x: Tensor, valid: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, valid)
        return x


class CrossStage(_Stage):
    """A cross stage partial stage.

    Kind "cross" has a transition on the block path and one behind the concatenation [cross, block]
    (figure 3b of the paper); kind "cross3" only the latter, on [block, cross].
    """

    def __init__(
        self,
        in_channels: int,
        spec: StageSpec,
        *,
        conv: ConvFactory,
        attention: StageAttention | None = None,
    ) -> None:
        """Build the stage.

        Args:
            in_channels: of the stage before.
            spec: what to build.
            conv: makes convolutions.
            attention: in the blocks, or here: "branch" is at the end of the block path, "concat"
                on both paths, "stage_out" behind everything.
        """
        super().__init__(in_channels, spec.channels, spec.stride)
        half = spec.block_channels
        channels = self._add_down(spec, conv)
        self.conv_exp = conv(channels, 2 * half, activate=not spec.cross_linear)
        self._add_blocks(spec, conv, attention)
        self.blocks_first = spec.kind == "cross3"
        self.conv_transition_b = None if self.blocks_first else conv(half, half)
        self.conv_transition = conv(2 * half, spec.channels)
        self._host(attention, {"branch": half, "concat": 2 * half, "stage_out": spec.channels})

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride), sizes rounded up."""
        x = self._run_down(x, valid)
        valid = shrink_mask(valid, self.stride)
        first, second = self.conv_exp(x).chunk(2, dim=1)
        blocks, cross = (first, second) if self.blocks_first else (second, first)
        blocks = self._run_blocks(blocks, valid)
        if self.conv_transition_b is not None:
            blocks = self.conv_transition_b(blocks)
        blocks = self._attend("branch", blocks, valid)
        both = torch.cat([blocks, cross] if self.blocks_first else [cross, blocks], dim=1)
        both = self._attend("concat", both, valid)
        return self._attend("stage_out", self.conv_transition(both), valid)


class PlainStage(_Stage):
    """A DarkNet stage: the strided convolution, then blocks on all channels."""

    def __init__(
        self,
        in_channels: int,
        spec: StageSpec,
        *,
        conv: ConvFactory,
        attention: StageAttention | None = None,
    ) -> None:
        """Build the stage.

        Args:
            in_channels: of the stage before.
            spec: what to build.
            conv: makes convolutions.
            attention: in the blocks, or "stage_out" here.
        """
        super().__init__(in_channels, spec.channels, spec.stride)
        self._add_down(spec, conv)
        self._add_blocks(spec, conv, attention)
        self._host(attention, {"stage_out": spec.channels})

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride), sizes rounded up."""
        x = self._run_down(x, valid)
        valid = shrink_mask(valid, self.stride)
        return self._attend("stage_out", self._run_blocks(x, valid), valid)


def build_stage(
    in_channels: int,
    spec: StageSpec,
    *,
    conv: ConvFactory,
    attention: StageAttention | None = None,
) -> CrossStage | PlainStage:
    """The stage that ``spec`` describes."""
    stage_class = PlainStage if spec.kind == "plain" else CrossStage
    return stage_class(in_channels, spec, conv=conv, attention=attention)
