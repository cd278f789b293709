"""RoI heads, registered with detectron2 on import."""

from .double_head import CascadeDoubleHeadROIHeads, DoubleHeadROIHeads
from .double_head_layers import DoubleHeadBoxHead
from .double_head_predictor import DoubleHeadOutputLayers, fuse_scores
from .inverted_attention import Inversion, InvertedAttention
from .plugin_roi_heads import InvertedAttentionMixin, PluginCascadeROIHeads, PluginROIHeads
from .region_pooler import DoubleHeadPooler, enlarge_boxes

__all__ = [
    "CascadeDoubleHeadROIHeads",
    "DoubleHeadBoxHead",
    "DoubleHeadOutputLayers",
    "DoubleHeadPooler",
    "DoubleHeadROIHeads",
    "Inversion",
    "InvertedAttention",
    "InvertedAttentionMixin",
    "PluginCascadeROIHeads",
    "PluginROIHeads",
    "enlarge_boxes",
    "fuse_scores",
]
