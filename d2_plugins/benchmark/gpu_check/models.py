"""Step 4, first part: detectors on the device against the same detectors on the CPU."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ... import model_zoo
from ...engine.train_step import StepTrainer
from .checks import Check, Scale, at_least, at_most
from .kernels import allow_tf32
from .small_detectors import available_combinations, small_batch, small_cfg

__all__ = ["WITHOUT_CHANCE", "check_models", "flagship_cfg", "same_as_on_the_cpu"]

_FLAGSHIP = ("cspnet", "cascade_rpn", "double_head", True, False)
_LOSS_TOLERANCE = 1e-3
# Scores that are equal but for rounding change the order of a few detections.
_LEAST_MATCHED = 0.9
# Shrinks the flagship for the simulated device.
_TOY = (
    *("MODEL.CSPNET.WIDTH_MULTIPLIER", 0.125, "MODEL.CSPNET.DEPTH_MULTIPLIER", 0.2),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.DOUBLE_HEAD.FC_DIM", 16),
    *("MODEL.DOUBLE_HEAD.CONV_DIM", 16, "MODEL.ROI_HEADS.NUM_CLASSES", 2),
)
# Sample all anchors and RoIs, because CPU and GPU draw different random numbers.
WITHOUT_CHANCE = (
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 4000, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 4000),
)


def flagship_cfg(scale: Scale, name: str = "csp_cascade.yaml", *opts: object) -> CfgNode:
    """Return the flagship's config for training from random weights on the device."""
    cfg = model_zoo.get_config(name)
    toy = () if scale.full else _TOY
    device = ("MODEL.WEIGHTS", "", "MODEL.CSPNET.NORM", "BN", "MODEL.DEVICE", scale.device)
    cfg.merge_from_list([*device, *toy, *opts])
    return cfg


def check_models(scale: Scale) -> list[Check]:
    """Compare losses and detections with the CPU's; train in three precisions."""
    cfgs = [small_cfg(c) for c in available_combinations()[:: scale.combinations]]
    checks = same_as_on_the_cpu(f"{len(cfgs)} combinations", cfgs, scale)
    for name in ("csp_cascade.yaml", "csp_cascade_mask.yaml"):
        cfg = flagship_cfg(scale, name, *WITHOUT_CHANCE)
        checks += same_as_on_the_cpu(name, [cfg], scale)
    for dtype in (None, torch.float16, torch.bfloat16):
        checks.append(_two_steps(scale, dtype))
    checks.append(_checkpointing(scale))
    return checks


def same_as_on_the_cpu(name: str, cfgs: list[CfgNode], scale: Scale) -> list[Check]:
    """Compare detectors on the device with the same detectors on the CPU.

    Args:
        name: name of the detectors in the report.
        cfgs: their configs.
        scale: gives the device.

    Returns:
        The largest deviation of a loss, and the share of detections that are the same.
    """
    deviations, matched = [0.0], []
    for cfg in cfgs:
        with _on_cpu(cfg), allow_tf32(False):
            torch.manual_seed(0)
            reference = build_model(cfg)
            model = copy.deepcopy(reference).to(scale.device)
            expected, actual = _losses(reference), _losses(model)
            deviations += [
                abs(actual[key] - value) / max(abs(value), 1.0) for key, value in expected.items()
            ]
            matched += _matched(_detections(reference), _detections(model))
    share = sum(matched) / max(len(matched), 1)
    worst = max(deviations) if all(d == d for d in deviations) else float("nan")
    return [
        at_most(f"{name}: deviation of the losses from the CPU's", worst, _LOSS_TOLERANCE),
        at_least(f"{name}: share of the CPU's detections found", share, _LEAST_MATCHED),
    ]


@contextmanager
def _on_cpu(cfg: CfgNode) -> Iterator[None]:
    device, cfg.MODEL.DEVICE = cfg.MODEL.DEVICE, "cpu"
    try:
        yield
    finally:
        cfg.MODEL.DEVICE = device


def _losses(model: nn.Module) -> dict[str, float]:
    """Return the losses of a training step; batch statistics, so that weights of any size fit."""
    torch.manual_seed(0)
    with EventStorage(1), torch.enable_grad():
        losses: dict[str, Tensor] = model.train()(small_batch())
    return {name: float(loss) for name, loss in losses.items()}


@torch.no_grad()
def _detections(model: nn.Module) -> list[Instances]:
    outputs = model.eval()(small_batch())
    return [output["instances"].to("cpu") for output in outputs]


def _matched(expected: list[Instances], actual: list[Instances]) -> list[bool]:
    """Tell for each expected detection if there is one with the same class, score and box."""
    found: list[bool] = []
    for one, other in zip(expected, actual, strict=True):
        same = pairwise_iou(one.pred_boxes, other.pred_boxes) > 0.95
        same &= one.pred_classes[:, None] == other.pred_classes[None, :]
        same &= (one.scores[:, None] - other.scores[None, :]).abs() < 1e-3
        found += same.any(dim=1).tolist()
    return found


def _two_steps(scale: Scale, dtype: torch.dtype | None) -> Check:
    """Train two steps with clipping, the second with an image without objects."""
    cfg = small_cfg(_FLAGSHIP, "MODEL.DEVICE", scale.device)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    batches: list[list[dict[str, Any]]] = [small_batch(), small_batch((3, 0))]
    trainer = StepTrainer(model, batches, optimizer, amp_dtype=dtype, clip_norm=10.0)
    with EventStorage() as storage:
        for _ in batches:
            trainer.run_step()
        finite = all(value == value for value, _ in storage.latest().values())
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    name = f"two steps in {str(dtype or torch.float32).removeprefix('torch.')}"
    found = "finite" if finite else "not finite"
    return Check(name, finite and not missing, found, "finite losses, a gradient everywhere")


def _checkpointing(scale: Scale) -> Check:
    """Compare the gradients with and without gradient checkpointing."""
    gradients = []
    for enabled in (False, True):
        opts = ("MODEL.CSPNET.GRADIENT_CHECKPOINTING", enabled, "MODEL.DEVICE", scale.device)
        torch.manual_seed(0)
        model = build_model(small_cfg(_FLAGSHIP, *opts)).train()
        with EventStorage(1), allow_tf32(False):
            sum(model(small_batch()).values()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    plain, checkpointed = gradients
    errors = [_relative(checkpointed[name], plain[name]) for name in plain]
    return at_most("gradient checkpointing: change of the gradients", max(errors), 1e-3)


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / (expected.norm() + 1e-3))
