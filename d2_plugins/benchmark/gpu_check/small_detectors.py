"""All combinations of the components as small detectors, and images for them."""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances

from ... import model_zoo

__all__ = ["BACKBONES", "COMBINATIONS", "HEADS", "PROPOSALS", "small_batch", "small_cfg"]

Combination = tuple[str, str, str, bool, bool]

BACKBONES: dict[str, tuple[object, ...]] = {
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
PROPOSALS: dict[str, tuple[object, ...]] = {
    "rpn": ("MODEL.PROPOSAL_GENERATOR.NAME", "RPN"),
    "cascade_rpn": (
        *("MODEL.PROPOSAL_GENERATOR.NAME", "CascadeRPN"),
        *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
    ),
}
HEADS: dict[str, tuple[object, ...]] = {
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
# Backbone, proposal generator, RoI heads, Inverted Attention, masks.
COMBINATIONS: list[Combination] = list(
    product(BACKBONES, PROPOSALS, HEADS, (False, True), (False, True))
)
SMALL: tuple[object, ...] = (
    # All anchors are sampled, so that every level of the pyramid has a loss.
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 1100),
    *("MODEL.DOUBLE_HEAD.FC_DIM", 16, "MODEL.DOUBLE_HEAD.CONV_DIM", 16),
    *("MODEL.DOUBLE_HEAD.NUM_CONV", 1),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5),
)
# All RoIs are sampled: CPU and GPU draw different random numbers.
_WITHOUT_CHANCE: tuple[object, ...] = (
    *("MODEL.CSPNET.WIDTH_MULTIPLIER", 0.125, "MODEL.CSPNET.DEPTH_MULTIPLIER", 0.2),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 1100, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 100),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 256, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.5),
    *("MODEL.ROI_HEADS.NUM_CLASSES", 2),
    # Inverted Attention masks every RoI whose score falls: those of an untrained head fall little.
    *("MODEL.INVERTED_ATTENTION.MIN_CHANGE", 0.0, "MODEL.INVERTED_ATTENTION.FG_FRACTION", 0.5),
    *("MODEL.INVERTED_ATTENTION.BG_FRACTION", 0.5),
)
_SIZE = (64, 80)


def available_combinations() -> list[Combination]:
    """Return all combinations; without timm, those of the other backbones."""
    has_timm = find_spec("timm") is not None
    return [c for c in COMBINATIONS if has_timm or c[0] != "timm"]


def small_cfg(combination: Combination, *opts: object) -> CfgNode:
    """Return the config of a small detector that samples without chance, on the CPU.

    Args:
        combination: one of :data:`COMBINATIONS`.
        opts: further KEY VALUE pairs.
    """
    backbone, proposals, heads, inverted, mask = combination
    cfg = model_zoo.get_config("Demo/Base-shapes.yaml")
    parts = [*BACKBONES[backbone], *PROPOSALS[proposals], *HEADS[heads]]
    switches = ["MODEL.INVERTED_ATTENTION.ENABLED", inverted, "MODEL.MASK_ON", mask]
    cfg.merge_from_list([*SMALL, *_WITHOUT_CHANCE, *parts, *switches, *opts])
    return cfg


def small_batch(objects: Sequence[int] = (3, 2), seed: int = 0) -> list[dict[str, Any]]:
    """Return images of 64 x 80 pixels with 0 to 3 objects each, as the model's input."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 10.0, 75.0, 44.0], [8.0, 8.0, 24.0, 24.0]])
    masks = torch.zeros(3, *_SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    return [
        {
            "image": torch.randint(0, 256, (3, *_SIZE), generator=generator, dtype=torch.uint8),
            "height": _SIZE[0],
            "width": _SIZE[1],
            "instances": Instances(
                _SIZE,
                gt_boxes=Boxes(boxes[:count]),
                gt_classes=torch.tensor([0, 1, 0])[:count],
                gt_masks=BitMasks(masks[:count]),
            ),
        }
        for count in objects
    ]
