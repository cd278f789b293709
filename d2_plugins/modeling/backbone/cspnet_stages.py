"""Stages of CSPNet (Wang et al. 2020, arXiv 1911.11929, section 3.2).

A cross stage widens its input by a 1x1 convolution and splits the result into two halves. One half
crosses the stage unchanged, the other runs through the blocks, and a transition fuses both. The
authors' networks have two parallel 1x1 convolutions instead of one that is split. Both compute the
same function, because the norm works channel by channel.

The mask ``valid`` is explained in :mod:`.cspnet_blocks`.
"""

import torch
from torch import Tensor, nn

from ...layers.padding import subsample_mask, zero_padding_
from .attention_plan import StageAttention
from .cspnet_archs import StageSpec
from .cspnet_blocks import AttentionHost, BottleneckBlock, ConvFactory, ConvNormAct, DarkBlock

__all__ = ["CrossStage", "PlainStage", "build_stage"]

_BLOCKS = {"bottleneck": BottleneckBlock, "dark": DarkBlock}


class _Stage(AttentionHost):
    """Base class of the stages: a strided convolution at the start, and a row of blocks."""

    def __init__(self, in_channels: int, spec: StageSpec, *, conv: ConvFactory) -> None:
        super().__init__(in_channels, spec.channels, spec.stride)
        self.conv_down: ConvNormAct | None = None
        self.split_channels = in_channels
        if spec.stride != 1:
            self.split_channels = spec.channels if spec.down_growth else in_channels
            self.conv_down = conv(
                in_channels, self.split_channels, 3, stride=spec.stride, groups=spec.groups
            )

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

    def _downsample(self, x: Tensor) -> Tensor:
        return x if self.conv_down is None else self.conv_down(x)

    def _run_blocks(self, x: Tensor, valid: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, valid)
        return x


class CrossStage(_Stage):
    """A cross stage partial stage.

    Kind "cross" has a transition on the block path and one after the concatenation [cross, block]
    (figure 3b of the paper). Kind "cross3" has only the second one, after [block, cross].
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
            in_channels: number of input channels.
            spec: description of the stage.
            conv: factory of the convolutions.
            attention: attention of the stage, in its blocks or here: "branch" is at the end of the
                block path, "cross" on the other path, "concat" on both paths together, "stage_out"
                on the output.
        """
        super().__init__(in_channels, spec, conv=conv)
        half = spec.block_channels
        self.conv_exp = conv(self.split_channels, 2 * half, activate=not spec.cross_linear)
        self._add_blocks(spec, conv, attention)
        self.blocks_first = spec.kind == "cross3"
        self.conv_transition_b = None if self.blocks_first else conv(half, half)
        self.conv_transition = conv(2 * half, spec.channels)
        self.host(
            attention,
            {"branch": half, "cross": half, "concat": 2 * half, "stage_out": spec.channels},
        )

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride), sizes rounded up."""
        valid = subsample_mask(valid, self.stride)
        first, second = self.conv_exp(self._downsample(x)).chunk(2, dim=1)
        blocks, cross = (first, second) if self.blocks_first else (second, first)
        blocks = self._run_blocks(blocks, valid)
        if self.conv_transition_b is not None:
            blocks = self.conv_transition_b(blocks)
        blocks = self.attend("branch", blocks, valid)
        cross = self.attend("cross", cross, valid)
        both = torch.cat([blocks, cross] if self.blocks_first else [cross, blocks], dim=1)
        both = self.attend("concat", both, valid)
        return self.attend("stage_out", self.conv_transition(both, valid), valid)


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
            in_channels: number of input channels.
            spec: description of the stage.
            conv: factory of the convolutions.
            attention: attention of the stage, in its blocks or here at "stage_out".
        """
        super().__init__(in_channels, spec, conv=conv)
        self._add_blocks(spec, conv, attention)
        self.host(attention, {"stage_out": spec.channels})

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride), sizes rounded up."""
        valid = subsample_mask(valid, self.stride)
        x = self._run_blocks(self._downsample(x), valid)
        return self.attend("stage_out", zero_padding_(x, valid), valid)


def build_stage(
    in_channels: int,
    spec: StageSpec,
    *,
    conv: ConvFactory,
    attention: StageAttention | None = None,
) -> CrossStage | PlainStage:
    """Build the stage that ``spec`` describes."""
    stage_class = PlainStage if spec.kind == "plain" else CrossStage
    return stage_class(in_channels, spec, conv=conv, attention=attention)
