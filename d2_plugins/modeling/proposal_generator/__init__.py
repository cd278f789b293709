"""Proposal generators; importing this package registers them."""

from .cascade_rpn import CascadeRPN
from .cascade_rpn_loss import CascadeRPNLoss
from .cascade_rpn_stage import CascadeRPNStage, StageOutput
from .matching import iou_match, region_match

__all__ = [
    "CascadeRPN",
    "CascadeRPNLoss",
    "CascadeRPNStage",
    "StageOutput",
    "iou_match",
    "region_match",
]
