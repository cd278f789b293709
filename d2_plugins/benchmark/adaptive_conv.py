"""Time of the adaptive convolution relative to a plain and to torchvision's deformable one."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import adaptive_conv2d
from ..layers.adaptive_conv.convolution import Backend
from .machine import extra_memory_mb
from .timing import median_ratio

__all__ = ["adaptive_conv"]

_STRIDE = 4
# Largest allowed deviation from the reference, in standard deviations of its values.
_TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 3e-1}


def adaptive_conv(
    size: tuple[int, int] = (100, 152),
    channels: int = 256,
    images: int = 1,
    dtype: str = "float32",
    device: str = "cpu",
    backend: Backend = "auto",
    repeats: int = 15,
    slow_repeats: int = 3,
) -> dict[str, float]:
    """Time the adaptive convolution, F.conv2d and torchvision's deform_conv2d by the wall clock.

    The feature map is contiguous, as a convolution without channels-last receives it. The boxes
    resemble those of Cascade RPN's first stage: shifted and rescaled anchors.

    Args:
        size: height and width of the feature map; the default is level P3 of an 800 x 1216 image.
        channels: number of input and output channels.
        images: number of images in the batch.
        dtype: dtype of feature and weight.
        device: "cpu" or "cuda".
        backend: backend of the adaptive convolution.
        repeats: number of measurements against F.conv2d.
        slow_repeats: number of measurements against torchvision, which takes seconds on the CPU.

    Returns:
        ``forward_vs_conv2d`` and ``train_vs_conv2d`` (forward and backward, gradients of feature
        and weight): time divided by the time of F.conv2d. Both compute the same products, so 1.0
        is the lower bound. ``forward_vs_torchvision`` and ``train_vs_torchvision``: time of the
        offsets and torchvision's operator divided by our time. ``extra_memory_mb``: memory at
        inference in addition to inputs and result.

    Raises:
        RuntimeError: the results differ from those of the reference.
    """
    torch.manual_seed(0)
    like = {"device": device, "dtype": getattr(torch, dtype)}
    feature = torch.randn(images, channels, *size, **like)
    weight = torch.randn(channels, channels, 3, 3, **like) / (3 * channels**0.5)
    boxes = _refined_anchors(images, *size).to(device)

    def adaptive(backend: Backend) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, w: adaptive_conv2d(x, boxes, w, stride=_STRIDE, backend=backend)

    functions = {
        "ours": adaptive(backend),
        "conv2d": lambda x, w: F.conv2d(x, w, padding=1),
        "torchvision": adaptive("reference"),
    }
    infer = {name: _inference(f, feature, weight) for name, f in functions.items()}
    # Memory comes first, while the allocator holds little memory of other things.
    extra_memory = extra_memory_mb(infer["ours"], device)
    _check(functions["ours"], functions["torchvision"], feature, weight, _TOLERANCE[dtype])
    train = {name: _training(f, feature, weight) for name, f in functions.items()}

    def ratio(run: Callable[[], object], base: Callable[[], object], repeats: int) -> float:
        return median_ratio(run, base, repeats=repeats, device=device, clock=time.perf_counter)

    return {
        "forward_vs_conv2d": ratio(infer["ours"], infer["conv2d"], repeats),
        "forward_vs_torchvision": ratio(infer["torchvision"], infer["ours"], slow_repeats),
        "train_vs_conv2d": ratio(train["ours"], train["conv2d"], repeats),
        "train_vs_torchvision": ratio(train["torchvision"], train["ours"], slow_repeats),
        "extra_memory_mb": extra_memory,
    }


def _refined_anchors(images: int, height: int, width: int) -> Tensor:
    """Return squares of about 8 cells, shifted by about a cell from theirs: (N, H * W, 4)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = torch.stack([x, y], dim=-1).reshape(-1, 2) + torch.randn(images, height * width, 2)
    half = 4 * torch.exp(0.3 * torch.randn(images, height * width, 2))
    return torch.cat([centre - half, centre + half], dim=-1) * _STRIDE


def _check(
    function: Callable[[Tensor, Tensor], Tensor],
    reference: Callable[[Tensor, Tensor], Tensor],
    feature: Tensor,
    weight: Tensor,
    tolerance: float,
) -> None:
    """Compare values and gradients with the reference before anything is timed."""
    grad = torch.randn_like(feature)
    results = []
    for convolve in (function, reference):
        x, w = feature.detach().requires_grad_(), weight.detach().requires_grad_()
        out = convolve(x, w)
        results.append([out, *torch.autograd.grad(out, (x, w), grad)])
    for name, actual, expected in zip(("result", "feature", "weight"), *results, strict=True):
        scale = expected.float().std().item()
        error = (actual.float() - expected.float()).abs().max().item() / scale
        if not error <= tolerance:
            raise RuntimeError(
                f"the adaptive convolution's {name} deviates from the reference by {error:.2g} "
                f"standard deviations; allowed: {tolerance:.2g}"
            )


def _inference(
    function: Callable[[Tensor, Tensor], Tensor], feature: Tensor, weight: Tensor
) -> Callable[[], Tensor]:
    """Return a forward pass."""

    def run() -> Tensor:
        with torch.no_grad():
            return function(feature, weight)

    return run


def _training(
    function: Callable[[Tensor, Tensor], Tensor], feature: Tensor, weight: Tensor
) -> Callable[[], object]:
    """Return a forward and backward pass; the gradient has the memory format of the result."""
    x, w = feature.detach().requires_grad_(), weight.detach().requires_grad_()
    with torch.no_grad():
        grad = torch.randn_like(function(x, w))

    def run() -> object:
        return torch.autograd.grad(function(x, w), (x, w), grad)

    return run
