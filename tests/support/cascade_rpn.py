"""Models and inputs that several tests here share."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from d2_plugins import get_cfg
from d2_plugins.modeling.proposal_generator import CascadeRPN

LEVELS = ("p2", "p3", "p4", "p5", "p6")


def crpn_cfg(**own: object) -> CfgNode:
    """A config of CascadeRPN on five levels; ``own`` are keys of MODEL.CASCADE_RPN."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "CascadeRPN"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    cfg.MODEL.RPN.IN_FEATURES = list(LEVELS)
    cfg.MODEL.RPN.NMS_THRESH = 0.8
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 2000
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 1000
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 300
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 300
    cfg.MODEL.CASCADE_RPN.update(own)
    return cfg


def crpn(channels: int = 8, cfg: CfgNode | None = None, **own: object) -> CascadeRPN:
    """A CascadeRPN on features p2..p6 with that many channels."""
    cfg = cfg or crpn_cfg(**own)
    strides = {name: 2 ** int(name[1:]) for name in LEVELS}
    shapes = {name: ShapeSpec(channels=channels, stride=s) for name, s in strides.items()}
    return CascadeRPN(cfg, shapes)


def random_features(
    size: tuple[int, int], images: int = 1, channels: int = 8, levels: Sequence[str] = LEVELS
) -> dict[str, Tensor]:
    """Feature maps of a batch of that padded (height, width), which take gradients."""
    sizes = {name: [-(-side // 2 ** int(name[1:])) for side in size] for name in levels}
    return {
        name: torch.randn(images, channels, *s, requires_grad=True) for name, s in sizes.items()
    }


def image_list(*sizes: tuple[int, int], padded: tuple[int, int] | None = None) -> ImageList:
    """Black images of those (height, width) in one batch."""
    height, width = padded or (max(s[0] for s in sizes), max(s[1] for s in sizes))
    return ImageList(torch.zeros(len(sizes), 3, height, width), list(sizes))


def instances(size: tuple[int, int], boxes: Sequence[Sequence[float]] | Tensor) -> Instances:
    """Ground truth of one image."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32).view(-1, 4)
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.zeros(len(boxes)).long())


def random_boxes(number: int, size: tuple[int, int], least: float = 4.0) -> Tensor:
    """Boxes of log-uniform sides whose centres lie in (height, width)."""
    height, width = size
    centre = torch.rand(number, 2) * torch.tensor([width, height])
    sides = least * torch.exp(torch.rand(number, 2) * 4)
    return torch.cat([centre - sides / 2, centre + sides / 2], dim=1)
