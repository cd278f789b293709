"""Small RoI heads and batches for the tests of this folder."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROIHeads, build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import Tensor

from d2_plugins import get_cfg

CHANNELS = 8
NUM_CLASSES = 3
IMAGE_SIZE = (256, 256)
INPUT_SHAPE = {
    "p2": ShapeSpec(channels=CHANNELS, stride=4),
    "p3": ShapeSpec(channels=CHANNELS, stride=8),
}

EXT = ("MODEL.DOUBLE_HEAD.LAMBDA_FC", 0.7, "MODEL.DOUBLE_HEAD.LAMBDA_CONV", 0.8)
IA = ("MODEL.INVERTED_ATTENTION.ENABLED", True)
# Every RoI whose probability falls at all is masked: small batches have something to mask.
EAGER_IA = (
    *IA,
    "MODEL.INVERTED_ATTENTION.MIN_CHANGE",
    0.0,
    "MODEL.INVERTED_ATTENTION.FG_FRACTION",
    0.5,
    "MODEL.INVERTED_ATTENTION.BG_FRACTION",
    0.5,
)
OUR_HEADS = (
    "PluginROIHeads",
    "PluginCascadeROIHeads",
    "DoubleHeadROIHeads",
    "CascadeDoubleHeadROIHeads",
)


_DETECTOR = {
    "MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "WEIGHTS": "",
        "DEVICE": "cpu",
        # Untrained statistics let activations grow: a small input keeps the scores off 0 and 1.
        "PIXEL_STD": [3000.0, 3000.0, 3000.0],
        "BACKBONE": {"NAME": "build_resnet_fpn_backbone", "FREEZE_AT": 0},
        "RESNETS": {
            "DEPTH": 18,
            "RES2_OUT_CHANNELS": 64,
            "OUT_FEATURES": ["res4", "res5"],
            "NORM": "BN",
        },
        "FPN": {"IN_FEATURES": ["res4", "res5"], "OUT_CHANNELS": 8},
        "ANCHOR_GENERATOR": {"SIZES": [[32], [64]], "ASPECT_RATIOS": [[1.0]]},
        "RPN": {
            "IN_FEATURES": ["p4", "p5"],
            "PRE_NMS_TOPK_TEST": 20,
            "POST_NMS_TOPK_TEST": 20,
        },
        "ROI_HEADS": {"IN_FEATURES": ["p4", "p5"], "NUM_CLASSES": 3, "SCORE_THRESH_TEST": 0.0},
        "ROI_BOX_HEAD": {
            "NAME": "FastRCNNConvFCHead",
            "NUM_FC": 1,
            "FC_DIM": 16,
            "POOLER_RESOLUTION": 7,
            "CLS_AGNOSTIC_BBOX_REG": True,
        },
        "DOUBLE_HEAD": {"FC_DIM": 16, "CONV_DIM": 16, "NUM_CONV": 1, "LAMBDA_CONV": 0.8},
    },
    "INPUT": {"MIN_SIZE_TEST": 96, "MAX_SIZE_TEST": 128},
    "DATASETS": {"TEST": []},
}


def make_cfg(name: str, *overrides: object) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NAME = name
    cfg.MODEL.ROI_HEADS.IN_FEATURES = list(INPUT_SHAPE)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = "Cascade" in name
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = (8,)
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 2
    cfg.MODEL.DOUBLE_HEAD.FC_DIM = 16
    cfg.MODEL.DOUBLE_HEAD.CONV_DIM = 16
    cfg.MODEL.DOUBLE_HEAD.NUM_CONV = 1
    cfg.merge_from_list(list(overrides))
    return cfg


def make_detector_cfg(roi_heads: str) -> CfgNode:
    """A whole detector, small and untrained."""
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(_DETECTOR))
    cfg.MODEL.ROI_HEADS.NAME = roi_heads
    return cfg


def make_heads(name: str, *overrides: object) -> ROIHeads:
    """RoI heads with the same weights each time."""
    torch.manual_seed(1)
    return build_roi_heads(make_cfg(name, *overrides), INPUT_SHAPE)


def random_boxes(count: int) -> Tensor:
    """(count, 4) boxes for both levels: the second starts at 112 pixels."""
    corners = torch.rand(count, 2) * 100
    return torch.cat([corners, corners + 16 + torch.rand(count, 2) * 140], dim=1)


Batch = tuple[ImageList, dict[str, Tensor], list[Instances], list[Instances]]


def make_batch(num_gt: tuple[int, ...] = (3, 2), num_proposals: int = 30, seed: int = 2) -> Batch:
    """Images, features that need a gradient, proposals and targets; the same for the same seed."""
    torch.manual_seed(seed)
    n = len(num_gt)
    features = {
        name: torch.randn(n, CHANNELS, 256 // s.stride, 256 // s.stride).requires_grad_()
        for name, s in INPUT_SHAPE.items()
    }
    proposals, targets = [], []
    for count in num_gt:
        gt = random_boxes(count)
        target = Instances(IMAGE_SIZE)
        target.gt_boxes = Boxes(gt)
        target.gt_classes = torch.randint(NUM_CLASSES, (count,))
        target.gt_masks = BitMasks(torch.rand(count, *IMAGE_SIZE) > 0.5)
        center, quarter = (gt[:, :2] + gt[:, 2:]) / 2, (gt[:, 2:] - gt[:, :2]) / 4
        points = torch.stack([center - quarter, center + quarter], dim=1)
        target.gt_keypoints = Keypoints(torch.cat([points, torch.full((count, 2, 1), 2.0)], dim=2))
        targets.append(target)
        # Some proposals on the objects, so that there are foreground RoIs.
        near = gt.repeat(num_proposals // (2 * max(count, 1)), 1)
        near = (near + torch.randn_like(near))[:num_proposals]
        proposal = Instances(IMAGE_SIZE)
        boxes = torch.cat([near, random_boxes(num_proposals - len(near))])
        proposal.proposal_boxes = Boxes(boxes)
        proposal.objectness_logits = torch.zeros(num_proposals)
        proposals.append(proposal)
    images = ImageList(torch.zeros(n, 3, *IMAGE_SIZE), [IMAGE_SIZE] * n)
    return images, features, proposals, targets


def train_losses(heads: ROIHeads, batch: Batch, start_iter: int = 0) -> dict[str, Tensor]:
    """One training forward with a fixed draw of RoIs."""
    torch.manual_seed(3)
    heads.train()
    with EventStorage(start_iter):
        _, losses = heads(*batch)
    return losses


def train_step(
    heads: ROIHeads, batch: Batch
) -> tuple[dict[str, Tensor], dict[str, Tensor | None], list[Tensor | None]]:
    """Losses, gradients of the parameters by name, and gradients of the feature maps."""
    losses = train_losses(heads, batch)
    sum(losses.values()).backward()
    parameters = {name: p.grad for name, p in heads.named_parameters()}
    return losses, parameters, [f.grad for f in batch[1].values()]


def detect(heads: ROIHeads, batch: Batch) -> list[Instances]:
    heads.eval()
    with torch.no_grad():
        instances, _ = heads(*batch[:3])
    return instances
