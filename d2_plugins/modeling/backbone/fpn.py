"""FPN and RetinaNet's pyramid on top of any backbone, built from the config.

detectron2's builders work only with its ResNet and a feature "res5". These read the channels and
strides from ``output_shape()``.
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
    """FPN with an attention module on each output, including P6 and P7.

    The attention is applied after the whole pyramid is computed, so that it changes only the
    features that the heads read.
    """

    def __init__(self, *, attention: AttentionPlan, **fpn_options: object) -> None:
        """Build the pyramid.

        Args:
            attention: settings of the attention; its position and stages are not used here.
            fpn_options: arguments of :class:`detectron2.modeling.FPN`.
        """
        super().__init__(**fpn_options)
        self._ignore_padding = attention.ignore_padding
        self.attention = nn.ModuleDict(
            {name: attention.build(shape.channels) for name, shape in self.output_shape().items()}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the pyramid features of the images ``x`` (N, C, H, W) by name ("p2", ...)."""
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
    """Put the FPN of ``MODEL.FPN`` on top of a backbone.

    Args:
        cfg: config with the keys of d2_plugins; ``MODEL.ATTENTION.ON_FPN`` adds attention.
        bottom_up: the backbone.
        retinanet: extend the pyramid by two strided convolutions on the last input feature
            (RetinaNet's P6 and P7) instead of by max pooling (FPN's P6).

    Raises:
        ValueError: ``MODEL.FPN.IN_FEATURES`` names a feature that ``bottom_up`` does not return, or
            the attention is not one for an FPN.
    """
    node = cfg.MODEL.FPN
    shapes = bottom_up.output_shape()
    unknown = [name for name in node.IN_FEATURES if name not in shapes]
    if unknown or not node.IN_FEATURES:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES is {node.IN_FEATURES}; allowed: one or more of the features "
            f"that the backbone returns, {', '.join(shapes)}"
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
    if attention.name == "local" and cfg.MODEL.ATTENTION.ON_FPN:
        raise ValueError("MODEL.ATTENTION.ON_FPN is True; allowed with NAME 'local': False")
    if attention.name and cfg.MODEL.ATTENTION.ON_FPN:
        return AttentionFPN(attention=attention, **options)
    return FPN(**options)
