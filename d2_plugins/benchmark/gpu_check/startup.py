"""Step 3: compilations of the Triton kernels at the start of a run, and none later."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ...layers import AdaptiveConv2d
from .checks import Check, Scale, at_most, value

__all__ = ["check_startup"]

_MOST_COMPILATIONS = 8
_STRIDES = (4, 8, 16, 32, 64)
_TIMEOUT = 300  # seconds


def check_startup(scale: Scale) -> list[Check]:
    """Run steps of the adaptive convolution in new processes, with a cold and a warm cache."""
    if not scale.full:
        steps = run_steps(scale.device, scale.random_sizes, 8, scale.image_size)
        return [value("first step", steps["first_seconds"], " s")]
    with tempfile.TemporaryDirectory() as cache:
        cold = _in_new_process(scale, cache)
        warm = _in_new_process(scale, cache)
    return [
        value("first step, cold cache", cold["first_seconds"], " s"),
        at_most("first step, warm cache", warm["first_seconds"], 20, " s"),
        at_most("compilations at the start", cold["first_compiled"], _MOST_COMPILATIONS),
        at_most(f"compilations in {scale.random_sizes} random sizes", cold["later_compiled"], 0),
        at_most("compilations with a warm cache", warm["later_compiled"], 0),
    ]


def _in_new_process(scale: Scale, cache: str) -> dict[str, float]:
    arguments = (scale.device, scale.random_sizes, 256, scale.image_size)
    code = f"from {__name__} import run_steps; import json; print(json.dumps(run_steps{arguments}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_steps(
    device: str, random_sizes: int, channels: int, size: tuple[int, int]
) -> dict[str, float]:
    """Run forward and backward passes on five levels, in half precision.

    Args:
        device: device of the passes.
        random_sizes: number of passes on smaller image sizes, as COCO's images give them.
        channels: number of channels.
        size: height and width of the first image, in pixels.

    Returns:
        Seconds of the first pass, and kernels compiled in the first pass and in the others.
    """
    torch.manual_seed(0)
    layer = AdaptiveConv2d(channels, channels).to(device)
    start, before = time.perf_counter(), _compiled()
    _step(layer, device, size)
    torch.cuda.synchronize(device)
    seconds, first = time.perf_counter() - start, _compiled()
    for _ in range(random_sizes):
        height, width = (side - 32 * int(torch.randint(side // 64 + 1, ())) for side in size)
        _step(layer, device, (height, width))
    return {
        "first_seconds": seconds,
        "first_compiled": first - before,
        "later_compiled": _compiled() - first,
    }


def _step(layer: AdaptiveConv2d, device: str, size: tuple[int, int]) -> None:
    channels = layer.in_channels
    with torch.autocast(torch.device(device).type, dtype=torch.float16):
        for stride in _STRIDES:
            height, width = (-(-side // stride) for side in size)
            feature = torch.randn(2, channels, height, width, device=device, requires_grad=True)
            corner = torch.rand(2, height * width, 2, device=device) * min(size)
            boxes = torch.cat([corner, corner + 8 * stride], dim=-1)
            layer(feature, boxes, stride=stride).float().sum().backward()


def _compiled() -> int:
    """Return the number of compiled kernels in Triton's cache."""
    folder = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton" / "cache"))
    return sum(1 for _ in folder.rglob("*.cubin"))
