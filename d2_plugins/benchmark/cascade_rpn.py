"""Time of Cascade RPN relative to detectron2's RPN, and time of region matching.

On a shared machine only ratios are meaningful, so the two networks are timed in turn.
"""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..config import get_cfg
from ..modeling.proposal_generator import region_match
from .fixed_work import random_boxes
from .timing import elapsed, median_ratio
from .training_step import training_step

__all__ = ["cascade_rpn", "region_matching"]

_SIZE = (800, 1216)  # height and width of a typical image at detectron2's training size
_STRIDES = (4, 8, 16, 32, 64)


def cascade_rpn(channels: int = 256, repeats: int = 5, device: str = "cpu") -> dict[str, float]:
    """Time Cascade RPN and detectron2's RPN (three anchors per cell) on an 800 x 1216 image.

    Both have the settings of their Faster R-CNN configs and run from the five feature maps to the
    proposals.

    Args:
        channels: number of channels of the feature maps.
        repeats: number of measured pairs.
        device: "cpu" or "cuda".

    Returns:
        ``inference_vs_rpn``: ratio of the inference times; ``train_vs_rpn``: ratio of the times of
        a forward and backward pass with 8 ground-truth boxes; ``parameters_vs_rpn``: ratio of the
        numbers of parameters.
    """
    torch.manual_seed(0)
    models = [_build(name, channels).to(device) for name in ("CascadeRPN", "RPN")]
    features = {
        f"p{s}": torch.randn(1, channels, *size).to(device)
        for s, size in zip(_STRIDES, _feature_sizes(), strict=True)
    }
    images = ImageList(torch.zeros(1, 3, *_SIZE, device=device), [_SIZE])
    gt = Instances(_SIZE, gt_boxes=Boxes(random_boxes(8, _SIZE).to(device)))
    infer = [partial(_infer, model, images, features) for model in models]
    train = [_training_step(model, images, features, gt) for model in models]
    ours, theirs = (sum(p.numel() for p in model.parameters()) for model in models)
    return {
        "inference_vs_rpn": median_ratio(*infer, repeats=repeats, device=device),
        "train_vs_rpn": median_ratio(*train, repeats=repeats, device=device),
        "parameters_vs_rpn": ours / theirs,
    }


def region_matching(
    num_boxes: int = 1000, repeats: int = 11, device: str = "cpu"
) -> dict[str, float]:
    """Time the matching of all cells of an 800 x 1216 image to regions; on the CPU, on one core.

    Args:
        num_boxes: number of ground-truth boxes.
        repeats: number of measurements; the median is returned.
        device: "cpu" or "cuda".

    Returns:
        ``milliseconds`` on this machine.
    """
    torch.manual_seed(0)
    boxes, sizes = Boxes(random_boxes(num_boxes, _SIZE).to(device)), _feature_sizes()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = [
            elapsed(lambda: region_match(boxes, sizes, _STRIDES), device) for _ in range(repeats)
        ]
    finally:
        torch.set_num_threads(threads)
    return {"milliseconds": 1000 * median(seconds)}


def _feature_sizes() -> list[tuple[int, int]]:
    return [(-(-_SIZE[0] // s), -(-_SIZE[1] // s)) for s in _STRIDES]


def _build(name: str, channels: int) -> nn.Module:
    """Build a proposal generator whose predictions differ from cell to cell."""
    cfg = get_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = name
    cfg.MODEL.RPN.IN_FEATURES = [f"p{s}" for s in _STRIDES]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8 * s] for s in _STRIDES]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 2000
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 1000
    if name == "CascadeRPN":
        cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
        cfg.MODEL.RPN.NMS_THRESH = 0.8
    number = 300 if name == "CascadeRPN" else 1000
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = number
    shapes = {f"p{s}": ShapeSpec(channels=channels, stride=s) for s in _STRIDES}
    model = build_proposal_generator(cfg, shapes)
    for parameter in model.parameters():
        # With the initial weights all boxes are anchors and all scores are equal.
        if parameter.shape[2:] == (1, 1):
            nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def _infer(model: nn.Module, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
    proposals, _ = model.eval()(images, features)
    return proposals


def _training_step(
    model: nn.Module, images: ImageList, features: dict[str, Tensor], gt: Instances
) -> Callable[[], None]:
    """Return a training step without the optimizer; the features require gradients."""
    features = {name: x.detach().requires_grad_() for name, x in features.items()}

    def run() -> None:
        training_step(model.train(), lambda: model(images, features, [gt])[1])
        for x in features.values():
            x.grad = None

    return run
