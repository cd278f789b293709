"""All components. Importing this package registers them with detectron2."""

from .backbone import CSPNet
from .inference import inference_form
from .proposal_generator import CascadeRPN, CascadeRPNStage
from .roi_heads import (
    CascadeDoubleHeadROIHeads,
    DoubleHeadROIHeads,
    InvertedAttention,
    PluginCascadeROIHeads,
    PluginROIHeads,
)

__all__ = [
    "CSPNet",
    "CascadeDoubleHeadROIHeads",
    "CascadeRPN",
    "CascadeRPNStage",
    "DoubleHeadROIHeads",
    "InvertedAttention",
    "PluginCascadeROIHeads",
    "PluginROIHeads",
    "inference_form",
]
