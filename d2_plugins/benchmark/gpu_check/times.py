"""Step 6: times by CUDA events and peak memory, next to stock Faster R-CNN in this process."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from ..adaptive_conv import adaptive_conv
from ..cascade_rpn import cascade_rpn, region_matching
from ..fixed_work import random_boxes
from ..roi_heads import double_head, inverted_attention
from ..timing import median_seconds
from .checks import Check, Scale, at_least, at_most, value
from .counts import stock_cfg
from .models import flagship_cfg

__all__ = ["check_times"]

_MB = 2**20


def check_times(scale: Scale) -> list[Check]:
    """Time the components and whole detectors."""
    return [
        *_adaptive_convolution(scale),
        *_components(scale),
        *_detectors(scale),
    ]


def _limited(scale: Scale, check: Callable[..., Check], *args: Any) -> Check:
    """Apply a limit at full size; at toy size report the number."""
    return check(*args) if scale.full else value(*args[:2])


def _adaptive_convolution(scale: Scale) -> list[Check]:
    """Time the operator per level and dtype; the limits are for the largest level."""
    checks = []
    for dtype in ("float32", "float16"):
        for level, size in enumerate(scale.level_sizes):
            result = adaptive_conv(
                size=size,
                channels=scale.channels[0],
                images=2,
                dtype=dtype,
                device=scale.device,
                repeats=scale.repeats,
                slow_repeats=scale.repeats,
            )
            name = f"adaptive convolution, {dtype}, {size[0]} x {size[1]}"
            for key, number in result.items():
                if level == 0 and key.endswith("_vs_torchvision"):
                    checks.append(_limited(scale, at_least, f"{name}, {key}", number, 2))
                else:
                    checks.append(value(f"{name}, {key}", number))
    return checks


def _components(scale: Scale) -> list[Check]:
    device, repeats, channels = scale.device, scale.repeats, 256 if scale.full else 8
    rpn = cascade_rpn(channels, repeats=repeats, device=device)
    rois = 512 if scale.full else 4
    attention = inverted_attention(rois, repeats=repeats, device=device)
    heads = double_head(rois, repeats=repeats, device=device)
    matching = region_matching(repeats=repeats, device=device)["milliseconds"]
    return [
        value("Cascade RPN over RPN, inference", rpn["inference_vs_rpn"]),
        _limited(scale, at_most, "Cascade RPN over RPN, training", rpn["train_vs_rpn"], 1.6),
        value("region matching", matching, " ms"),
        *(value(f"{name} over 2 fc", ratios["time_ratio"]) for name, ratios in heads.items()),
        *(
            value(f"Inverted Attention on {name}, {part}", ratio)
            for name, ratios in attention.items()
            for part, ratio in ratios.items()
        ),
    ]


def _detectors(scale: Scale) -> list[Check]:
    """Time inference, training steps and their options for the flagship and the stock detector."""
    flagship = partial(flagship_cfg, scale, "csp_cascade.yaml")
    without_attention = flagship("MODEL.INVERTED_ATTENTION.ENABLED", False)
    with_padding = flagship("MODEL.ATTENTION.IGNORE_PADDING", False)
    ours, theirs = _inference(flagship(), scale), _inference(stock_cfg(scale), scale)
    checks = [
        value("stock Faster R-CNN, inference", 1000 * theirs, " ms"),
        value("flagship, inference", 1000 * ours, " ms"),
        _limited(scale, at_most, "flagship over stock, inference", ours / theirs, 1.3),
    ]
    for batch in scale.batches:
        for name, cfg in (
            ("stock Faster R-CNN", stock_cfg(scale)),
            ("flagship", flagship()),
            ("flagship without Inverted Attention", without_attention),
            ("flagship with statistics over the padding", with_padding),
        ):
            checks += _training(f"{name}, {batch} images", cfg, batch, scale)
    return checks


def _inference(cfg: CfgNode, scale: Scale) -> float:
    model = _build(cfg).eval()
    run = torch.no_grad()(partial(model, _images(1, scale)))
    return median_seconds(run, scale.repeats, scale.device)


def _training(name: str, cfg: CfgNode, batch: int, scale: Scale) -> list[Check]:
    """Time a training step in mixed precision, and measure idle time and memory."""
    run = partial(_step, _build(cfg).train(), _images(batch, scale))
    torch.cuda.reset_peak_memory_stats(scale.device)
    seconds = median_seconds(run, scale.repeats, scale.device)
    memory = torch.cuda.max_memory_allocated(scale.device) / _MB
    checks = [
        value(f"{name}: training step", 1000 * seconds, " ms"),
        value(f"{name}: peak memory", memory, " MB"),
    ]
    if scale.full:
        checks.append(value(f"{name}: idle share of the device", _idle_share(run)))
    return checks


def _build(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = build_model(cfg)
    return model


def _step(model: nn.Module, batch: list[dict[str, Any]]) -> None:
    """Run a training step without the optimizer, in float16 with autocast."""
    with EventStorage(1), torch.autocast("cuda", dtype=torch.float16):
        losses = model(batch)
    sum(losses.values()).backward()
    model.zero_grad()


def _images(number: int, scale: Scale) -> list[dict[str, Any]]:
    height, width = scale.image_size
    batch = []
    for _ in range(number):
        boxes = Boxes(random_boxes(8, scale.image_size))
        classes = torch.zeros(8, dtype=torch.long)
        target = Instances(scale.image_size, gt_boxes=boxes, gt_classes=classes)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        batch.append({"image": image, "instances": target, "height": height, "width": width})
    return batch


def _idle_share(run: Callable[[], None]) -> float:
    """Return the share of a step's time in which no kernel runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    return max(0.0, 1 - busy / seconds)
