"""All combinations of the components at toy size."""

from itertools import product
from pathlib import Path

from detectron2.config import CfgNode

from tests.support.toy import toy_cfg

BACKBONES = {
    "cspnet": ("MODEL.BACKBONE.NAME", "build_cspnet_fpn_backbone", "MODEL.ATTENTION.NAME", "eca"),
    "attention_resnet": (
        *("MODEL.BACKBONE.NAME", "build_attention_resnet_fpn_backbone"),
        *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.NORM", "BN"),
        *("MODEL.ATTENTION.NAME", "cbam", "MODEL.ATTENTION.REDUCTION", 4),
    ),
    "timm": (
        *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NORM", "BN"),
        *("MODEL.TIMM.NAME", "lcnet_035"),
    ),
}
PROPOSALS = {
    "rpn": ("MODEL.PROPOSAL_GENERATOR.NAME", "RPN"),
    "cascade_rpn": (
        *("MODEL.PROPOSAL_GENERATOR.NAME", "CascadeRPN"),
        *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
    ),
}
HEADS = {
    "standard": ("MODEL.ROI_HEADS.NAME", "PluginROIHeads"),
    "double_head": (
        *("MODEL.ROI_HEADS.NAME", "DoubleHeadROIHeads"),
        *("MODEL.DOUBLE_HEAD.LAMBDA_FC", 0.7, "MODEL.DOUBLE_HEAD.LAMBDA_CONV", 0.8),
        *("MODEL.DOUBLE_HEAD.CONV_BLOCKS", "nonlocal"),
    ),
    "cascade_double_head": (
        *("MODEL.ROI_HEADS.NAME", "CascadeDoubleHeadROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    ),
}
SMALL = (
    # All anchors are sampled: no level of the pyramid goes without a loss by chance.
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 1100),
    *("MODEL.DOUBLE_HEAD.FC_DIM", 16, "MODEL.DOUBLE_HEAD.CONV_DIM", 16),
    *("MODEL.DOUBLE_HEAD.NUM_CONV", 1),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5),
)
COMBINATIONS = list(product(BACKBONES, PROPOSALS, HEADS, (False, True), (False, True)))


def combined_cfg(
    output: Path, backbone: str, proposals: str, heads: str, inverted: bool, mask: bool
) -> CfgNode:
    return toy_cfg(
        output,
        [
            *SMALL,
            *BACKBONES[backbone],
            *PROPOSALS[proposals],
            *HEADS[heads],
            *("MODEL.INVERTED_ATTENTION.ENABLED", inverted, "MODEL.MASK_ON", mask),
        ],
    )
