"""Backbones. Importing this package registers their builders in detectron2's BACKBONE registry."""

from .attention_plan import AttentionPlan
from .attention_resnet import AttentionResNet
from .cspnet import CSPNet
from .fpn import AttentionFPN, build_fpn
from .timm_backbone import TimmBackbone

__all__ = [
    "AttentionFPN",
    "AttentionPlan",
    "AttentionResNet",
    "CSPNet",
    "TimmBackbone",
    "build_fpn",
]
