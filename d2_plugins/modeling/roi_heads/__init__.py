"""RoI heads, registered with detectron2 on import."""

from .double_head import CascadeDoubleHeadROIHeads, DoubleHeadROIHeads
from .double_head_box_head import DoubleHeadBoxHead
from .double_head_pooler import DoubleHeadPooler, enlarge_boxes
from .double_head_predictor import DoubleHeadOutputLayers, fuse_boxes, fuse_scores
from .inverted_attention import Inversion, InvertedAttention
from .inverted_attention_heads import InvertedAttentionMixin, PluginCascadeROIHeads, PluginROIHeads

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
    "fuse_boxes",
    "fuse_scores",
]
