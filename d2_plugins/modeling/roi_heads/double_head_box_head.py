"""The two heads of a Double-Head: an fc head and a conv head on RoI features.

Wu et al., "Rethinking Classification and Localization for Object Detection", CVPR 2020.

Shape shorthand: R RoIs of the whole batch, C channels, P pooled resolution, H pooled views of a
RoI (1 or 2, see :class:`~d2_plugins.modeling.roi_heads.double_head_pooler.DoubleHeadPooler`).

Two conv heads are described in public: the one of mmdetection (residual blocks only) and the one
the authors released (non-local units between the residual blocks). Both are here and equal theirs
number by number (``tests/modeling/roi_heads/test_double_head_box_head.py``).
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ConvHead", "DoubleHeadBoxHead", "NonLocalUnit", "WideningBlock", "append_coordinates"]

_NORMS = ("BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "GN", "LN")
_BLOCKS = ("bottleneck", "nonlocal")


class WideningBlock(CNNBlockBase):
    """First block of the conv head: a residual block that widens C channels, usually to 4C.

    The main path is a 3x3 conv and a 1x1 conv (a ResNet basic block has 3x3 twice), the shortcut a
    1x1 conv; every conv is without bias and has a norm.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, norm: str, inner_channels: int | None = None
    ) -> None:
        """Build the block.

        Args:
            in_channels: number of input channels.
            out_channels: number of output channels.
            norm: norm of every conv, see :func:`detectron2.layers.get_norm`.
            inner_channels: number of channels between the two convs; None is ``in_channels``.
        """
        super().__init__(in_channels, out_channels, stride=1)
        inner = inner_channels or in_channels
        self.conv1 = _conv(in_channels, inner, 3, norm, activation=F.relu)
        self.conv2 = _conv(inner, out_channels, 1, norm)
        self.shortcut = _conv(in_channels, out_channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(R, in_channels, P, P) to (R, out_channels, P, P)."""
        out = self.conv2(self.conv1(x))
        out += self.shortcut(x)
        return F.relu_(out)


class NonLocalUnit(nn.Module):
    """A layer in which each place of a RoI attends to all others, in groups of channels.

    The affinity of two places is the dot product of their embeddings divided by the number of
    places: no softmax. The output projection starts at zero, so that a fresh unit passes a
    non-negative input through unchanged.
    """

    def __init__(self, channels: int, *, groups: int, norm: str) -> None:
        """Build the unit.

        Args:
            channels: number of input and output channels. The embeddings have half as many.
            groups: number of equal channel groups with an affinity each.
            norm: norm of the output projection, see :func:`detectron2.layers.get_norm`.

        Raises:
            ValueError: if the groups do not divide the channels of the embeddings.
        """
        super().__init__()
        inner = channels // 2
        if inner % groups:
            raise ValueError(
                f"MODEL.DOUBLE_HEAD.NL_GROUPS is {groups}; allowed: divisors of "
                f"MODEL.DOUBLE_HEAD.CONV_DIM / 2 = {inner}"
            )
        self.groups = groups
        self.theta = Conv2d(channels, inner, kernel_size=1)
        self.phi = Conv2d(channels, inner, kernel_size=1)
        self.g = Conv2d(channels, inner, kernel_size=1)
        self.out = Conv2d(inner, channels, kernel_size=1, norm=get_norm(norm, channels))
        for layer in (self.theta, self.phi, self.g):
            c2_msra_fill(layer)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, P, P) to the same shape."""
        # (R, C/2, P, P) -> (R, groups, C/2/groups, P*P)
        theta, phi, g = (
            layer(x).flatten(2).unflatten(1, (self.groups, -1))
            for layer in (self.theta, self.phi, self.g)
        )
        # Divided before the product, which float16 could overflow otherwise.
        affinity = (theta / theta.shape[-1]).transpose(2, 3) @ phi  # (R, groups, P*P, P*P)
        y = g @ affinity.transpose(2, 3)
        y = y.flatten(1, 2).unflatten(2, x.shape[2:])
        out = self.out(y)
        out += x
        return F.relu_(out)


class ConvHead(nn.Sequential):
    """The conv head: a widening block, then residual blocks, then the mean over all places."""

    def __init__(
        self,
        in_channels: int,
        *,
        conv_dim: int,
        num_blocks: int,
        blocks: str,
        nonlocal_groups: int,
        norm: str,
        zero_init_residual: bool = False,
        coordinates: bool = False,
    ) -> None:
        """Build the head; see :class:`DoubleHeadBoxHead` for the arguments."""
        channels = in_channels + 2 if coordinates else in_channels
        widening = WideningBlock(channels, conv_dim, norm=norm, inner_channels=in_channels)
        layers: list[nn.Module] = [widening]
        last_norms = [widening.conv2.norm]
        for _ in range(num_blocks):
            if blocks == "nonlocal":
                layers.append(NonLocalUnit(conv_dim, groups=nonlocal_groups, norm=norm))
            block = BottleneckBlock(
                conv_dim, conv_dim, bottleneck_channels=conv_dim // 4, norm=norm
            )
            layers.append(block)
            last_norms.append(block.conv3.norm)
        super().__init__(*layers)
        self.coordinates = coordinates
        if zero_init_residual:
            for last_norm in last_norms:
                nn.init.zeros_(last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(R, in_channels, P, P) to (R, conv_dim)."""
        if self.coordinates:
            x = append_coordinates(x)
        return super().forward(x).mean(dim=(2, 3))


def append_coordinates(x: Tensor) -> Tensor:
    """Append two channels that tell each place of a RoI where it is.

    Liu et al., "An intriguing failing of convolutional neural networks and the CoordConv solution",
    NeurIPS 2018.

    Args:
        x: (R, C, P, P).

    Returns:
        (R, C + 2, P, P); the new channels are x and y from -1 to 1, at the centres of the outermost
        places.
    """
    steps = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype, device=x.device)
    y, columns = torch.meshgrid(steps, steps, indexing="ij")
    return torch.cat([x, torch.stack([columns, y]).expand(x.shape[0], -1, -1, -1)], dim=1)


@ROI_BOX_HEAD_REGISTRY.register()
class DoubleHeadBoxHead(nn.Module):
    """The fc head and the conv head side by side."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_fc: int = 2,
        fc_dim: int = 1024,
        num_conv: int = 4,
        conv_dim: int = 1024,
        conv_blocks: str = "bottleneck",
        nonlocal_groups: int = 4,
        norm: str = "BN",
        zero_init_residual: bool = False,
        coordinates: bool = False,
    ) -> None:
        """Build both heads.

        Args:
            input_shape: channels, height and width of a pooled RoI.
            num_fc: number of fully connected layers of the fc head.
            fc_dim: width of the fully connected layers.
            num_conv: number of blocks of the conv head after the widening one.
            conv_dim: width of the conv head, a multiple of 4.
            conv_blocks: "bottleneck", or "nonlocal" for a non-local unit before each bottleneck.
            nonlocal_groups: number of channel groups of a non-local unit.
            norm: norm of the conv head, one of BN, SyncBN, nnSyncBN, naiveSyncBN, naiveSyncBN_N,
                GN, LN.
            zero_init_residual: start the last norm of each residual block at zero, so that a fresh
                block is its shortcut.
            coordinates: give the conv head the place within the RoI as two more channels.

        Raises:
            ValueError: for a setting that is out of range, with its config key.
        """
        super().__init__()
        _check_settings(num_fc, num_conv, conv_dim, conv_blocks, norm)
        self.fc_head = FastRCNNConvFCHead(input_shape, conv_dims=[], fc_dims=[fc_dim] * num_fc)
        self.conv_head = ConvHead(
            input_shape.channels,
            conv_dim=conv_dim,
            num_blocks=num_conv,
            blocks=conv_blocks,
            nonlocal_groups=nonlocal_groups,
            norm=norm,
            zero_init_residual=zero_init_residual,
            coordinates=coordinates,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Arguments from ``MODEL.DOUBLE_HEAD``."""
        node = cfg.MODEL.DOUBLE_HEAD
        return {
            "input_shape": input_shape,
            "num_fc": node.NUM_FC,
            "fc_dim": node.FC_DIM,
            "num_conv": node.NUM_CONV,
            "conv_dim": node.CONV_DIM,
            "conv_blocks": node.CONV_BLOCKS,
            "nonlocal_groups": node.NL_GROUPS,
            "norm": node.NORM,
            "zero_init_residual": node.ZERO_INIT_RESIDUAL,
            "coordinates": node.COORDINATES,
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Shape of the fc head's vector; that of the conv head has CONV_DIM channels."""
        return self.fc_head.output_shape

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Run the fc head on the first view of each RoI and the conv head on the last.

        Args:
            regions: (H, R, C, P, P), from a ``DoubleHeadPooler``.

        Returns:
            (R, fc_dim) and (R, conv_dim).

        Raises:
            ValueError: for features of an ordinary pooler.
        """
        if regions.dim() != 5:
            raise ValueError(
                f"DoubleHeadBoxHead takes RoI features of 5 dimensions, got {regions.dim()}: set "
                "MODEL.ROI_HEADS.NAME to DoubleHeadROIHeads or CascadeDoubleHeadROIHeads"
            )
        return self.fc_head(regions[0]), self.conv_head(regions[-1])


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, norm: str, activation: object = None
) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=False,
        norm=get_norm(norm, out_channels),
        activation=activation,
    )
    c2_msra_fill(conv)
    return conv


def _check_settings(num_fc: int, num_conv: int, conv_dim: int, blocks: str, norm: str) -> None:
    key = "MODEL.DOUBLE_HEAD"
    if num_fc < 1:
        raise ValueError(f"{key}.NUM_FC is {num_fc}; allowed: 1 or more")
    if num_conv < 0:
        raise ValueError(f"{key}.NUM_CONV is {num_conv}; allowed: 0 or more")
    if conv_dim % 4:
        raise ValueError(f"{key}.CONV_DIM is {conv_dim}; allowed: multiples of 4")
    if blocks not in _BLOCKS:
        raise ValueError(f"{key}.CONV_BLOCKS is '{blocks}'; allowed: {', '.join(_BLOCKS)}")
    if norm not in _NORMS:
        reason = ""
        if norm == "FrozenBN":
            reason = " (the conv head starts untrained, and so would its frozen statistics)"
        raise ValueError(f"{key}.NORM is '{norm}'; allowed: {', '.join(_NORMS)}{reason}")
