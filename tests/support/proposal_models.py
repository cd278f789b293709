"""Toy detectors whose proposals come from Cascade RPN."""

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from tests.support.toy import toy_cfg


def crpn_cfg(folder: Path, stages: int = 2) -> CfgNode:
    cfg = toy_cfg(folder)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "CascadeRPN"
    cfg.MODEL.CASCADE_RPN.NUM_STAGES = stages
    strides = [2 ** int(name[1:]) for name in cfg.MODEL.RPN.IN_FEATURES]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8 * stride] for stride in strides]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    return cfg


def lively(cfg: CfgNode) -> nn.Module:
    """A model whose stages move their boxes."""
    model = build_model(cfg).eval()
    for parameter in model.proposal_generator.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model
