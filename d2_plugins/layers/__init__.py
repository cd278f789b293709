"""Layers that know torch and detectron2.layers only: no registry, no config."""

from .attention import CBAM, ECA, SE, build_attention

__all__ = ["CBAM", "ECA", "SE", "build_attention"]
