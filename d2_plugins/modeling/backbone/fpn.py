"""From a bottom-up network to a detector's backbone: FPN and RetinaNet's pyramid, by config.

Shared by all backbones of this package. detectron2's own builders are tied to its ResNet (and to
"res5"); these read channels and strides from ``output_shape()``.
"""

import math

from detectron2.config import CfgNode
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from ...layers.padding import valid_extent, valid_mask
from .attention_plan import AttentionPlan

__all__ = ["AttentionFPN", "build_fpn"]


class AttentionFPN(FPN):
    """FPN with an attention module on each of its outputs, P6 and P7 included.

    The convolutions of the pyramid see the features without attention, so that each module scales
    only what the heads read.
    """

    def __init__(self, *, attention: AttentionPlan, **fpn_options: object) -> None:
        """Build the pyramid.

        Args:
            attention: which attention; its position and stages do not matter here.
            fpn_options: as :class:`detectron2.modeling.FPN`.
        """
        super().__init__(**fpn_options)
        self._ignore_padding = attention.ignore_padding
        self.attention = nn.ModuleDict(
            {name: attention.build(shape.channels) for name, shape in self.output_shape().items()}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Pyramid features of the images ``x`` (N, C, H, W), by name ("p2", ...)."""
        features = super().forward(x)
        if not self._ignore_padding:
            return {name: self.attention[name](feature) for name, feature in features.items()}
        extent = valid_extent(x)
        strides = self._out_feature_strides
        return {
            name: self.attention[name](feature, valid_mask(extent, strides[name], feature))
            for name, feature in features.items()
        }


def build_fpn(cfg: CfgNode, bottom_up: Backbone, *, retinanet: bool = False) -> FPN:
    """Put an FPN as ``MODEL.FPN`` says on top of ``bottom_up``.

    Args:
        cfg: a config with the keys of d2_plugins; ``MODEL.ATTENTION.ON_FPN`` is respected.
        bottom_up: any backbone.
        retinanet: extend the pyramid by two strided convolutions on the last input feature
            (RetinaNet's P6 and P7) instead of by max pooling (FPN's P6).

    Raises:
        ValueError: ``MODEL.FPN.IN_FEATURES`` names a feature that ``bottom_up`` does not return.
    """
    node = cfg.MODEL.FPN
    shapes = bottom_up.output_shape()
    unknown = [name for name in node.IN_FEATURES if name not in shapes]
    if unknown or not node.IN_FEATURES:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES = {node.IN_FEATURES}: the backbone returns "
            f"{', '.join(shapes)}; choose from these (or ask the backbone for more features)."
        )
    last = node.IN_FEATURES[-1]
    if retinanet:
        top_block = LastLevelP6P7(shapes[last].channels, node.OUT_CHANNELS, in_feature=last)
    else:
        top_block = LastLevelMaxPool()
        top_block.in_feature = f"p{int(math.log2(shapes[last].stride))}"
    options = {
        "bottom_up": bottom_up,
        "in_features": node.IN_FEATURES,
        "out_channels": node.OUT_CHANNELS,
        "norm": node.NORM,
        "top_block": top_block,
        "fuse_type": node.FUSE_TYPE,
    }
    attention = AttentionPlan.from_config(cfg)
    if attention.name and cfg.MODEL.ATTENTION.ON_FPN:
        return AttentionFPN(attention=attention, **options)
    return FPN(**options)
