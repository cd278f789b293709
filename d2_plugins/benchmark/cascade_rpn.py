"""What Cascade RPN costs beside detectron2's RPN, and what matching by regions takes.

Times on a shared machine mean little alone: those of the networks are ratios of two things timed in
turn.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..config import get_cfg
from ..modeling.proposal_generator import region_match
from .fixed_work import random_boxes
from .timing import median_ratio

__all__ = ["cascade_rpn", "region_matching"]

_SIZE = (800, 1216)
_STRIDES = (4, 8, 16, 32, 64)


def cascade_rpn(channels: int = 256, repeats: int = 5) -> dict[str, float]:
    """Cascade RPN over detectron2's RPN with three anchors a cell, on five levels of 800 x 1216.

    Both with the settings of their Faster R-CNN configs, from the features to the proposals.

    Args:
        channels: of the features.
        repeats: timings of each pair.

    Returns:
        ``inference_vs_rpn``; ``train_vs_rpn``, a forward and backward pass with 8 ground truths;
        ``parameters_vs_rpn``.
    """
    torch.manual_seed(0)
    models = _build("CascadeRPN", channels), _build("RPN", channels)
    features = {
        f"p{s}": torch.randn(1, channels, *size)
        for s, size in zip(_STRIDES, _feature_sizes(), strict=True)
    }
    images = ImageList(torch.zeros(1, 3, *_SIZE), [_SIZE])
    gt = Instances(_SIZE, gt_boxes=Boxes(random_boxes(8, _SIZE)))
    ours, theirs = (sum(p.numel() for p in model.parameters()) for model in models)
    return {
        "inference_vs_rpn": median_ratio(
            *(_inference(model, images, features) for model in models), repeats=repeats
        ),
        "train_vs_rpn": median_ratio(
            *(_training(model, images, features, gt) for model in models), repeats=repeats
        ),
        "parameters_vs_rpn": ours / theirs,
    }


def region_matching(num_boxes: int = 1000, repeats: int = 11) -> dict[str, float]:
    """Matching the cells of an 800 x 1216 image by regions, on one core.

    Args:
        num_boxes: ground-truth boxes.
        repeats: timings; the median is reported.

    Returns:
        ``milliseconds`` on this machine.
    """
    torch.manual_seed(0)
    boxes, sizes = Boxes(random_boxes(num_boxes, _SIZE)), _feature_sizes()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(repeats):
            start = time.process_time()
            region_match(boxes, sizes, _STRIDES)
            seconds.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return {"milliseconds": 1000 * median(seconds)}


def _feature_sizes() -> list[tuple[int, int]]:
    return [(-(-_SIZE[0] // s), -(-_SIZE[1] // s)) for s in _STRIDES]


def _build(name: str, channels: int) -> nn.Module:
    """A proposal generator with its usual settings and predictions that vary from cell to cell."""
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
        # As initialised, all boxes would be anchors and all scores equal.
        if parameter.shape[2:] == (1, 1):
            nn.init.normal_(parameter, std=0.2)
    return model


def _inference(
    model: nn.Module, images: ImageList, features: dict[str, Tensor]
) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            model.eval()(images, features)

    return run


def _training(
    model: nn.Module, images: ImageList, features: dict[str, Tensor], gt: Instances
) -> Callable[[], None]:
    """A step without the optimiser; the features take gradients, as a backbone's do."""
    features = {name: x.detach().requires_grad_() for name, x in features.items()}

    def run() -> None:
        with EventStorage():
            _, losses = model.train()(images, features, [gt])
        sum(losses.values()).backward()
        model.zero_grad()
        for x in features.values():
            x.grad = None

    return run
