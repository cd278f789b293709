"""Layers that depend on torch and detectron2.layers only, not on a registry or a config."""

from .adaptive_conv import AdaptiveConv2d, adaptive_conv2d
from .attention import CBAM, ECA, SE, build_attention
from .local_attention import LocalAttention, local_attention

__all__ = [
    "CBAM",
    "ECA",
    "SE",
    "AdaptiveConv2d",
    "LocalAttention",
    "adaptive_conv2d",
    "build_attention",
    "local_attention",
]
