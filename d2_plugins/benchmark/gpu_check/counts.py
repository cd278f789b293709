"""Step 5: launches and waits of a training step next to those of stock Faster R-CNN."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from ... import model_zoo
from .checks import Check, Scale, at_most, value
from .models import flagship_cfg
from .small_detectors import small_batch

__all__ = ["check_counts", "stock_cfg"]

_MOST_LAUNCHES = 1.6  # times stock's
_MOST_WAITS = 10  # more than stock's


def stock_cfg(scale: Scale) -> CfgNode:
    """Return the config of detectron2's Faster R-CNN R-50-FPN (R-18 at toy size)."""
    cfg = model_zoo.get_config("Base-RCNN-FPN.yaml")
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON = "", scale.device, False
    cfg.MODEL.RESNETS.NORM = "BN"
    if not scale.full:
        cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
        cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    return cfg


def check_counts(scale: Scale) -> list[Check]:
    """Count a forward pass of training, two images, without statistics."""
    counts = {}
    for name, cfg in (("flagship", flagship_cfg(scale)), ("stock", stock_cfg(scale))):
        torch.manual_seed(0)
        run = partial(_forward, build_model(cfg).train())
        run()  # warm-up: kernels are compiled and chosen
        counts[name] = count_launches(run), count_waits(run)
    (launches, waits), (stock_launches, stock_waits) = counts["flagship"], counts["stock"]
    return [
        value("stock Faster R-CNN, launches", stock_launches),
        value("stock Faster R-CNN, waits", stock_waits),
        at_most("flagship, launches", launches, _MOST_LAUNCHES * stock_launches),
        at_most("flagship, waits", waits, stock_waits + _MOST_WAITS),
    ]


def _forward(model: nn.Module) -> None:
    with EventStorage(1):  # Statistics are written every 20th iteration, not in this one.
        model(small_batch())


def count_launches(run: Callable[[], None]) -> int:
    """Return the number of kernels that a call launches, without copies and fills."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum(1 for event in events if not event.name.startswith(("Memcpy", "Memset")))


def count_waits(run: Callable[[], None]) -> int:
    """Return how often a call makes the host wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
