"""The two heads of a Double-Head: an fc head and a conv head on RoI features.

Wu et al., "Rethinking Classification and Localization for Object Detection", CVPR 2020.

Shape shorthand: R RoIs of the whole batch, C channels, P pooled resolution, H pooled views of a
RoI (1 or 2, see :class:`~d2_plugins.modeling.roi_heads.double_head_pooler.DoubleHeadPooler`).

Two conv heads are described in public: the one of mmdetection (residual blocks only) and the one
the authors released (non-local units between the residual blocks). Both are here and equal theirs
number by number (``tests/modeling/roi_heads/test_double_head_box_head.py``).
"""

from detectron2.config import CfgNode, configurable
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ConvHead", "DoubleHeadBoxHead", "NonLocalUnit", "WideningBlock"]

_NORMS = ("BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "GN", "LN")
_BLOCKS = ("bottleneck", "nonlocal")


class WideningBlock(CNNBlockBase):
    """First block of the conv head: a residual block that widens C channels to 4C or so.

    Main path 3x3 conv and 1x1 conv (a ResNet basic block would have 3x3 twice), 1x1 conv as
    shortcut; every conv without bias and with a norm.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: str) -> None:
        """Build the block; ``norm`` as in :func:`detectron2.layers.get_norm`."""
        super().__init__(in_channels, out_channels, stride=1)
        self.conv1 = _conv(in_channels, in_channels, 3, norm, activation=F.relu)
        self.conv2 = _conv(in_channels, out_channels, 1, norm)
        self.shortcut = _conv(in_channels, out_channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(R, in_channels, P, P) to (R, out_channels, P, P)."""
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class NonLocalUnit(nn.Module):
    """Every place of a RoI looks at every other one, in groups of channels.

    The affinity of two places is the dot product of their embeddings divided by the number of
    places: no softmax. The output projection starts at zero, so that a fresh unit passes a
    non-negative input through unchanged.
    """

    def __init__(self, channels: int, *, groups: int, norm: str) -> None:
        """Build the unit.

        Args:
            channels: of the input and output. The embeddings have half as many.
            groups: number of equal channel groups with an affinity each.
            norm: of the output projection, see :func:`detectron2.layers.get_norm`.
        """
        super().__init__()
        inner = channels // 2
        if inner % groups:
            raise ValueError(
                f"MODEL.DOUBLE_HEAD.NL_GROUPS is {groups}: it must divide "
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
        return F.relu(self.out(y) + x)


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
    ) -> None:
        """Build the head; see :class:`DoubleHeadBoxHead` for the arguments."""
        layers: list[nn.Module] = [WideningBlock(in_channels, conv_dim, norm=norm)]
        for _ in range(num_blocks):
            if blocks == "nonlocal":
                layers.append(NonLocalUnit(conv_dim, groups=nonlocal_groups, norm=norm))
            layers.append(
                BottleneckBlock(conv_dim, conv_dim, bottleneck_channels=conv_dim // 4, norm=norm)
            )
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(R, in_channels, P, P) to (R, conv_dim)."""
        return super().forward(x).mean(dim=(2, 3))


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
    ) -> None:
        """Build both heads.

        Args:
            input_shape: channels, height and width of a pooled RoI.
            num_fc: number of fully connected layers of the fc head.
            fc_dim: their width.
            num_conv: number of blocks of the conv head after the widening one.
            conv_dim: their width, a multiple of 4.
            conv_blocks: "bottleneck", or "nonlocal" for a non-local unit before each bottleneck.
            nonlocal_groups: channel groups of a non-local unit.
            norm: of the conv head, one of BN, SyncBN, nnSyncBN, naiveSyncBN, naiveSyncBN_N, GN, LN.

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
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Shape of the fc head's vector; the conv head's has ``MODEL.DOUBLE_HEAD.CONV_DIM``."""
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
        raise ValueError(f"{key}.NUM_FC is {num_fc}: the fc head needs at least 1 layer")
    if num_conv < 0:
        raise ValueError(f"{key}.NUM_CONV is {num_conv}: it must be 0 or more")
    if conv_dim % 4:
        raise ValueError(f"{key}.CONV_DIM is {conv_dim}: it must be a multiple of 4")
    if blocks not in _BLOCKS:
        raise ValueError(f"{key}.CONV_BLOCKS is '{blocks}': it must be one of {_BLOCKS}")
    if norm == "FrozenBN":
        raise ValueError(
            f"{key}.NORM is 'FrozenBN': the conv head is trained from scratch and would keep "
            f"untrained statistics; it must be one of {_NORMS}"
        )
    if norm not in _NORMS:
        raise ValueError(f"{key}.NORM is '{norm}': it must be one of {_NORMS}")
