"""ResNet and ResNeXt with attention in the residual blocks, built on detectron2's blocks.

The attention comes after the last norm of a block and before the shortcut is added, as in the
CBAM, ECA-Net and SENet papers. The keys of the state dict are detectron2's plus ``*.attention.*``.

With ``ignore_padding``, the features of an image do not depend on the other images of its batch.
Pooling over the image's own area is not enough for that. After the first norm the padding is no
longer zero, the 3x3 convolutions carry it across the border of the image, and it changes the
pooled vectors. Therefore the input of each 3x3 convolution is set to zero on the padding, so that
the padding looks like the border of an image.

The result is exact (up to rounding) for every cell of ``res2``..``res5`` that belongs to an image,
in eval mode or with frozen norms. Not covered: batch statistics in training, which still count the
padding; layers of the detector behind these features (FPN's 3x3 convolutions, the RPN), which see
the padding in their outermost cells, as in detectron2; and the values of the padded cells.

Shapes: N images, C channels, Hi, Wi of the images, H, W of a feature map.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import (
    FPN,
    Backbone,
    ResNet,
    ResNetBlockBase,
    build_resnet_backbone,
)
from torch import Tensor

from ...layers.padding import subsample_mask, valid_extent, valid_mask
from .attention_plan import AttentionPlan, StageAttention
from .attention_resnet_blocks import AttentionBasicBlock, AttentionBottleneckBlock, PaddingAwareStem
from .fpn import build_fpn

__all__ = [
    "AttentionResNet",
    "build_attention_resnet_backbone",
    "build_attention_resnet_fpn_backbone",
    "build_retinanet_attention_resnet_fpn_backbone",
]

_STAGE_NAMES = ("res2", "res3", "res4", "res5")
_NUM_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class AttentionResNet(ResNet):
    """ResNet-18 to -152 and ResNeXt with attention in the blocks of some or all stages."""

    @configurable
    def __init__(
        self,
        *,
        attention: AttentionPlan,
        depth: int = 50,
        norm: str = "BN",
        in_channels: int = 3,
        stem_out_channels: int = 64,
        res2_out_channels: int | None = None,
        num_groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = False,
        res5_dilation: int = 1,
        out_features: Sequence[str] | None = _STAGE_NAMES,
        num_classes: int | None = None,
        freeze_at: int = 0,
    ) -> None:
        """Build the network. All options except ``attention`` are those of MODEL.RESNETS.

        Args:
            attention: settings of the attention; the only position is "block_out".
            depth: 18, 34, 50, 101 or 152.
            norm: norm of all convolutions, as for :func:`detectron2.layers.get_norm`. Norms
                inside the attention are always BatchNorm.
            in_channels: number of channels of the images.
            stem_out_channels: number of channels of the stem.
            res2_out_channels: number of channels of res2, doubled by each later stage; None for
                64 at depth 18 and 34, and 256 at the others.
            num_groups: groups of the 3x3 convolutions of a bottleneck (32 in ResNeXt).
            width_per_group: channels per group in res2's bottlenecks.
            stride_in_1x1: put the stride into the first 1x1 convolution, as MSRA's weights need
                it; the weights of torchvision and timm need it in the 3x3 convolution.
            res5_dilation: 1, or 2 for a res5 of stride 16.
            out_features: features to return, of "stem", "res2".."res5"; None for the last layer.
            num_classes: number of outputs of an ImageNet classifier named "linear"; None for no
                classifier.
            freeze_at: 0 freezes nothing, 1 the stem, 2 also res2, and so on; never the attention.

        Raises:
            ValueError: an option is not allowed; the message names its config key.
        """
        _check_options(depth, num_groups, res5_dilation)
        stages = _build_stages(
            depth,
            attention.for_stages(_STAGE_NAMES, positions=("block_out",)),
            in_channels=stem_out_channels,
            out_channels=res2_out_channels or (64 if depth < 50 else 256),
            bottleneck={
                "bottleneck_channels": num_groups * width_per_group,
                "num_groups": num_groups,
                "stride_in_1x1": stride_in_1x1,
            },
            norm=norm,
            res5_dilation=res5_dilation,
        )
        super().__init__(
            PaddingAwareStem(in_channels, stem_out_channels, norm),
            stages,
            num_classes=num_classes,
            out_features=None if out_features is None else list(out_features),
            freeze_at=freeze_at,
        )
        self._ignore_padding = attention.ignore_padding

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read ``MODEL.RESNETS``, ``MODEL.ATTENTION`` and ``MODEL.BACKBONE.FREEZE_AT``.

        Raises:
            ValueError: MODEL.RESNETS.DEFORM_ON_PER_STAGE is set.
        """
        node = cfg.MODEL.RESNETS
        if any(node.DEFORM_ON_PER_STAGE):
            raise ValueError(
                f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {node.DEFORM_ON_PER_STAGE}; allowed with "
                "attention: False in every stage"
            )
        return {
            "attention": AttentionPlan.from_config(cfg),
            "depth": node.DEPTH,
            "norm": node.NORM,
            "in_channels": input_shape.channels,
            "stem_out_channels": node.STEM_OUT_CHANNELS,
            "res2_out_channels": node.RES2_OUT_CHANNELS,
            "num_groups": node.NUM_GROUPS,
            "width_per_group": node.WIDTH_PER_GROUP,
            "stride_in_1x1": node.STRIDE_IN_1X1,
            "res5_dilation": node.RES5_DILATION,
            "out_features": node.OUT_FEATURES,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the features.

        Args:
            x: images (N, 3, Hi, Wi), normalised and zero on the padding.

        Returns:
            Features (N, C, H, W) by name.
        """
        valid = valid_mask(valid_extent(x), 1, x) if self._ignore_padding else None
        outputs = {"stem": self.stem(x, valid)}
        x, valid = outputs["stem"], subsample_mask(valid, self.stem.stride)
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            for block in stage:
                x = block(x, valid)
                valid = subsample_mask(valid, block.stride)
            outputs[name] = x
        if self.num_classes is not None:
            outputs["linear"] = self.linear(self.avgpool(x).flatten(1))
        return {name: feature for name, feature in outputs.items() if name in self._out_features}


def _check_options(depth: int, num_groups: int, res5_dilation: int) -> None:
    if depth not in _NUM_BLOCKS:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH is {depth}; allowed: {', '.join(map(str, _NUM_BLOCKS))}"
        )
    dilations = (1, 2) if depth >= 50 else (1,)
    if res5_dilation not in dilations:
        raise ValueError(
            f"MODEL.RESNETS.RES5_DILATION is {res5_dilation}; allowed at depth {depth}: "
            f"{', '.join(map(str, dilations))}"
        )
    if depth < 50 and num_groups != 1:
        raise ValueError(f"MODEL.RESNETS.NUM_GROUPS is {num_groups}; allowed at depth {depth}: 1")


def _build_stages(
    depth: int,
    attention: Mapping[str, StageAttention],
    *,
    in_channels: int,
    out_channels: int,
    bottleneck: dict[str, Any],
    norm: str,
    res5_dilation: int,
) -> list[list[ResNetBlockBase]]:
    """Build the blocks of res2..res5; ``bottleneck`` are res2's options for bottlenecks only."""
    stages = []
    for index, (name, num_blocks) in enumerate(zip(_STAGE_NAMES, _NUM_BLOCKS[depth], strict=True)):
        dilation = res5_dilation if name == "res5" else 1
        first_stride = 1 if name == "res2" or dilation == 2 else 2
        options: dict[str, Any] = {"norm": norm}
        if depth >= 50:
            width = bottleneck["bottleneck_channels"] * 2**index
            options |= bottleneck | {"bottleneck_channels": width, "dilation": dilation}
        blocks = ResNet.make_stage(
            AttentionBottleneckBlock if depth >= 50 else AttentionBasicBlock,
            num_blocks,
            in_channels=in_channels,
            out_channels=out_channels * 2**index,
            stride_per_block=[first_stride] + [1] * (num_blocks - 1),
            attention=attention[name].build if name in attention else None,
            **options,
        )
        in_channels = out_channels * 2**index
        stages.append(blocks)
    return stages


@BACKBONE_REGISTRY.register()
def build_attention_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build a ResNet with the attention of ``MODEL.ATTENTION``, or detectron2's if it has none."""
    node = cfg.MODEL.ATTENTION
    if not (node.NAME and any(node.STAGES)):
        return build_resnet_backbone(cfg, input_shape)
    return AttentionResNet(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_attention_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build an attention ResNet with FPN (P2 to P6 with the usual config)."""
    return build_fpn(cfg, build_attention_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_retinanet_attention_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build an attention ResNet with RetinaNet's pyramid (P3 to P7 with the usual config)."""
    return build_fpn(cfg, build_attention_resnet_backbone(cfg, input_shape), retinanet=True)
