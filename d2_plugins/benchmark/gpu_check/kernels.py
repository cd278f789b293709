"""Step 2: the adaptive convolution on the device against float64 on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...layers import adaptive_conv2d
from .checks import Check, Scale, at_most

__all__ = ["check_kernels"]

_STRIDE = 8
# Largest error in standard deviations of the expected values, by precision.
_TOLERANCES = {"float32": 1e-3, "tf32": 1e-2, "float16": 3e-2, "bfloat16": 3e-1}
_GIB = 2**30


def check_kernels(scale: Scale) -> list[Check]:
    """Compare results and both gradients for all precisions, sizes and unusual inputs."""
    checks = []
    for precision in _TOLERANCES:
        errors = [
            _error(scale.device, precision, *_inputs(1, channels, size))
            for channels in scale.channels
            for size in (scale.level_sizes if channels == scale.channels[0] else [(7, 10)])
        ]
        checks.append(at_most(f"error in {precision}", max(errors), _TOLERANCES[precision]))
    error = _error(scale.device, "float32", *_with_unusual_boxes(*_inputs(2, 16, (9, 11))))
    checks.append(at_most("error with NaN, infinite and huge boxes", error, 1e-3))
    checks.append(_empty_batch(scale.device))
    if scale.full:
        checks.append(_more_than_2_to_31_numbers(scale.device))
    return checks


def _inputs(images: int, channels: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return feature, boxes and weight on the CPU, exact in bfloat16 so that all precisions fit."""
    generator = torch.Generator().manual_seed(channels)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = torch.stack([x, y], dim=-1).reshape(-1, 2) + normal(images, height * width, 2)
    half = 4 * torch.exp(0.3 * normal(images, height * width, 2))
    boxes = torch.cat([centre - half, centre + half], dim=-1) * _STRIDE
    weight = normal(channels, channels, 3, 3) / (3 * channels**0.5)
    feature = normal(images, channels, height, width)
    return feature.bfloat16().float(), boxes, weight.bfloat16().float()


def _with_unusual_boxes(
    feature: Tensor, boxes: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    inf, nan = float("inf"), float("nan")
    unusual = [[nan] * 4, [0, 0, inf, 8], [-inf, 0, 8, 8], [-1e20, 0, 1e20, 8], [3e38] * 4]
    unusual += [[40.0, 40, 8, 8], [16.0, 16, 16, 16], [-1e5, -1e5, -9e4, -9e4]]
    boxes[:, : len(unusual)] = torch.tensor(unusual)
    return feature, boxes, weight


def _error(device: str, precision: str, feature: Tensor, boxes: Tensor, weight: Tensor) -> float:
    """Return the largest error of result and gradients, in standard deviations."""
    expected = _convolve(feature.double(), boxes.double(), weight.double(), "reference")
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    with allow_tf32(precision == "tf32"):
        feature, weight = (x.to(device, dtype) for x in (feature, weight))
        actual = _convolve(feature, boxes.to(device), weight, "auto")
    errors = []
    for ours, reference in zip(actual, expected, strict=True):
        difference = (ours.cpu().double() - reference).abs().max()
        errors.append(float(difference / reference.std()))
    # max() would drop a NaN that is not the first.
    return max(errors) if all(error == error for error in errors) else float("nan")


def _convolve(feature: Tensor, boxes: Tensor, weight: Tensor, backend: Any) -> list[Tensor]:
    """Return the result and the gradients of feature and weight."""
    x, w = feature.detach().requires_grad_(), weight.detach().requires_grad_()
    out = adaptive_conv2d(x, boxes, w, stride=_STRIDE, backend=backend)
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(out.shape, generator=generator).bfloat16().to(out)
    return [out.detach(), *torch.autograd.grad(out, (x, w), grad)]


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in convolutions and matrix products, and restore the settings."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def _empty_batch(device: str) -> Check:
    feature, boxes, weight = (x.to(device) for x in _inputs(1, 16, (5, 6)))
    results = _convolve(feature[:0], boxes[:0], weight, "auto")
    shapes = [tuple(x.shape) for x in results]
    passed = shapes[:2] == [(0, 16, 5, 6)] * 2 and not results[2].any().item()
    return Check("batch without images", passed, f"{shapes[0]}", "(0, 16, 5, 6), no gradient")


def _more_than_2_to_31_numbers(device: str) -> Check:
    """Compare the last rows of a map of more than 2**31 numbers with those of a part of it."""
    name, limit = "map of more than 2**31 numbers, last rows", "error <= 0.03"
    free, _ = torch.cuda.mem_get_info(device)
    if free < 12 * _GIB:
        return Check(name, True, f"skipped: {free / _GIB:.1f} of 12 GiB are free")
    height, width, channels, part = 131_200, 64, 256, 64
    feature = torch.zeros(1, height, width, channels, device=device, dtype=torch.float16)
    feature = feature.permute(0, 3, 1, 2)
    tail, boxes, weight = _inputs(1, channels, (part, width))
    feature[:, :, -part:] = tail.to(device)
    all_boxes = torch.zeros(1, height * width, 4, device=device)
    shift = torch.tensor([0.0, height - part, 0, height - part]) * _STRIDE
    all_boxes[:, -part * width :] = (boxes + shift).to(device)
    weight = weight[:8]
    half = weight.to(device, torch.float16)
    out = adaptive_conv2d(feature, all_boxes, half, stride=_STRIDE)[:, :, -part:]
    expected = adaptive_conv2d(tail, boxes, weight, stride=_STRIDE, backend="reference")
    # The first rows of the part see zeros above them in the one case and nothing in the other:
    # the same, because taps outside of a map are zero.
    error = float((out.cpu().float() - expected).abs().max() / expected.std())
    return Check(name, error <= 0.03, f"{error:.3g}", limit)
