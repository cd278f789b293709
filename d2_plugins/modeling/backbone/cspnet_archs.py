"""Tables of the CSPNet architectures, and scaling to smaller or larger ones.

The tables follow the authors' darknet configurations (CSPNet, Wang et al. 2020). Where timm differs
from them, they follow timm, so that timm's weights fit: the first stage of CSPResNe(X)t-50 splits
evenly, max pooling is 3x3, and the convolution before the split has no activation in any stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from types import MappingProxyType
from typing import Literal

from ...errors import nearest

__all__ = ["ARCHS", "CSPArch", "StageSpec", "StemSpec", "get_arch", "scale_arch"]

_DIVISOR = 8


@dataclass(frozen=True)
class StemSpec:
    """Convolutions before the first stage; the first one has the stride.

    Attributes:
        channels: number of output channels of each convolution.
        kernel_size: kernel size of every convolution.
        stride: stride of the first convolution.
        pool: end with a 3x3 max pooling of stride 2.
    """

    channels: tuple[int, ...]
    kernel_size: int = 3
    stride: int = 2
    pool: bool = False

    @property
    def total_stride(self) -> int:
        """Stride of the stem's output, in image pixels."""
        return self.stride * (2 if self.pool else 1)


@dataclass(frozen=True)
class StageSpec:
    """One stage.

    Attributes:
        kind: "cross" (CSPNet: transition on the block path, concatenation, transition), "cross3"
            (one transition after the concatenation, as in YOLOv5) or "plain" (no second path).
        block: "bottleneck" (1x1, 3x3, 1x1, as in ResNet) or "dark" (1x1, 3x3, as in DarkNet).
        depth: number of blocks.
        channels: number of output channels.
        stride: 1, or 2 for a strided 3x3 convolution at the start of the stage.
        groups: number of groups of every 3x3 convolution.
        expand_ratio: channels of both paths together, as a fraction of ``channels``.
        bottle_ratio: channels inside a block, as a fraction of the block's.
        cross_linear: no activation after the convolution that feeds the two paths.
        down_growth: the strided convolution already outputs ``channels`` channels.
    """

    kind: Literal["cross", "cross3", "plain"]
    block: Literal["bottleneck", "dark"]
    depth: int
    channels: int
    stride: int = 2
    groups: int = 1
    expand_ratio: float = 1.0
    bottle_ratio: float = 1.0
    cross_linear: bool = False
    down_growth: bool = False

    @property
    def block_channels(self) -> int:
        """Channels of the blocks: half of both paths, or all channels of a plain stage."""
        if self.kind == "plain":
            return self.channels
        return round(self.channels * self.expand_ratio) // 2

    @property
    def hidden_channels(self) -> int:
        """Channels inside the blocks."""
        return max(round(self.block_channels * self.bottle_ratio), 1)


@dataclass(frozen=True)
class CSPArch:
    """A network: the stem, its stages from high to low resolution, and the activation."""

    stem: StemSpec
    stages: tuple[StageSpec, ...]
    activation: Literal["leaky_relu", "silu"] = "leaky_relu"

    @property
    def strides(self) -> list[int]:
        """Stride of each stage's output, in image pixels."""
        steps = (spec.stride for spec in self.stages)
        return list(accumulate(steps, mul, initial=self.stem.total_stride))[1:]


_STEM_7X7 = StemSpec((64,), kernel_size=7, pool=True)
_STEM_DEEP = StemSpec((32, 32, 64), pool=True)
_STEM_DARK = StemSpec((32,), stride=1)


def _resnet_stages(
    channels: tuple[int, ...], expand_ratio: float, bottle_ratio: float, groups: int = 1
) -> tuple[StageSpec, ...]:
    return tuple(
        StageSpec(
            kind="cross",
            block="bottleneck",
            depth=depth,
            channels=width,
            stride=stride,
            groups=groups,
            expand_ratio=expand_ratio,
            bottle_ratio=bottle_ratio,
            cross_linear=True,
        )
        for depth, width, stride in zip((3, 3, 5, 2), channels, (1, 2, 2, 2), strict=True)
    )


_DARKNET_DEPTHS = (1, 2, 8, 8, 4)
_DARKNET_CHANNELS = (64, 128, 256, 512, 1024)


def _cspdarknet_stages() -> tuple[StageSpec, ...]:
    # In the first stage, which has a single block, both paths keep all channels.
    ratios = ((2.0, 0.5), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    return tuple(
        StageSpec(
            kind="cross",
            block="dark",
            depth=depth,
            channels=width,
            expand_ratio=expand,
            bottle_ratio=bottle,
            down_growth=True,
        )
        for depth, width, (expand, bottle) in zip(
            _DARKNET_DEPTHS, _DARKNET_CHANNELS, ratios, strict=True
        )
    )


def _darknet_stages() -> tuple[StageSpec, ...]:
    return tuple(
        StageSpec(
            kind="plain",
            block="dark",
            depth=depth,
            channels=width,
            bottle_ratio=0.5,
            down_growth=True,
        )
        for depth, width in zip(_DARKNET_DEPTHS, _DARKNET_CHANNELS, strict=True)
    )


def _cs3(channels: int, depths: tuple[int, ...], focus: bool = False) -> CSPArch:
    """CSPNet in the style of YOLOv5 and YOLOX; ``channels`` is the stem's."""
    stem = StemSpec((channels,), kernel_size=6) if focus else StemSpec((channels // 2, channels))
    stages = tuple(
        StageSpec(kind="cross3", block="dark", depth=depth, channels=channels * 2 ** (i + 1))
        for i, depth in enumerate(depths)
    )
    return CSPArch(stem, stages, activation="silu")


_CS3_SIZES = {
    "s": (32, (1, 3, 4, 1)),
    "m": (48, (2, 4, 6, 2)),
    "l": (64, (3, 6, 9, 3)),
    "x": (80, (3, 7, 11, 3)),
}

ARCHS: Mapping[str, CSPArch] = MappingProxyType(
    {
        "cspresnet50": CSPArch(_STEM_7X7, _resnet_stages((128, 256, 512, 1024), 2.0, 0.5)),
        "cspresnet50d": CSPArch(_STEM_DEEP, _resnet_stages((128, 256, 512, 1024), 2.0, 0.5)),
        "cspresnet50w": CSPArch(_STEM_DEEP, _resnet_stages((256, 512, 1024, 2048), 1.0, 0.25)),
        "cspresnext50": CSPArch(
            _STEM_7X7, _resnet_stages((256, 512, 1024, 2048), 1.0, 1.0, groups=32)
        ),
        "cspdarknet53": CSPArch(_STEM_DARK, _cspdarknet_stages()),
        "darknet53": CSPArch(_STEM_DARK, _darknet_stages()),
        **{f"cs3darknet_{size}": _cs3(*spec) for size, spec in _CS3_SIZES.items()},
        **{
            f"cs3darknet_focus_{size}": _cs3(*spec, focus=True) for size, spec in _CS3_SIZES.items()
        },
    }
)
"""All architectures, by timm's names."""


def get_arch(name: str) -> CSPArch:
    """Return the architecture of a name.

    Raises:
        ValueError: the name is unknown; the message has the nearest and all allowed names.
    """
    if name not in ARCHS:
        raise ValueError(
            f"MODEL.CSPNET.ARCH is '{name}'; nearest: {nearest(name, ARCHS)}; allowed: "
            f"{', '.join(ARCHS)}"
        )
    return ARCHS[name]


def scale_arch(arch: CSPArch, width: float = 1.0, depth: float = 1.0) -> CSPArch:
    """Return ``arch`` with all widths and depths multiplied.

    Widths are rounded to the nearest multiple of 8, and are at least 8. Depths are rounded to the
    nearest integer, and are at least 1. ``groups`` stays as it is: :class:`ConvFactory` reduces it
    for convolutions whose channels it does not divide.

    Args:
        arch: the architecture to scale.
        width: factor of all numbers of channels.
        depth: factor of the number of blocks of each stage.

    Raises:
        ValueError: a factor is not positive.
    """
    for key, value in (("WIDTH", width), ("DEPTH", depth)):
        if value <= 0:
            raise ValueError(f"MODEL.CSPNET.{key}_MULTIPLIER is {value}; allowed: above 0")
    stem = replace(arch.stem, channels=tuple(_scaled(c, width) for c in arch.stem.channels))
    stages = tuple(
        replace(
            spec,
            channels=_scaled(spec.channels, width),
            depth=max(int(spec.depth * depth + 0.5), 1),
        )
        for spec in arch.stages
    )
    return replace(arch, stem=stem, stages=stages)


def _scaled(channels: int, factor: float) -> int:
    return max(int(channels * factor / _DIVISOR + 0.5) * _DIVISOR, _DIVISOR)
