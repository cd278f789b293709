"""The Triton kernels under Triton's interpreter, on CPU tensors, against the reference.

The interpreter has to be chosen before Triton is imported, so test_triton_cuda.py runs
this file in a process of its own, as ``TRITON_INTERPRET=1 pytest <this file>`` does.
"""

import os

import pytest
import torch
from torch import Tensor

from d2_plugins.layers import adaptive_conv2d
from d2_plugins.layers.adaptive_conv import operators, triton_cuda
from tests.support.adaptive_conv import (
    jittered_boxes,
    non_finite_boxes,
    with_gradients,
)

assert os.environ["TRITON_INTERPRET"] == "1"


@pytest.fixture(autouse=True)
def _interpreter_knows_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.8's interpreter multiplies bfloat16 matrices by their bit patterns."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    multiply = builder.create_dot

    def widen(operand):
        if operand.dtype.scalar != interpreter.tl.bfloat16:
            return operand
        bits = operand.data.astype("uint32") << 16
        return interpreter.TensorHandle(bits.view("float32"), interpreter.tl.float32)

    monkeypatch.setattr(
        builder, "create_dot", lambda self, a, b, *rest: multiply(self, widen(a), widen(b), *rest)
    )


def compare(boxes: Tensor, inputs: tuple[Tensor, ...], tolerance: float) -> None:
    """Values and gradients of "triton" against those of the reference in float64."""
    images, _, height, width = inputs[0].shape
    grad = torch.randn(images, len(inputs[1]), height, width).to(inputs[0].dtype)
    expected, actual = (
        with_gradients(
            lambda x, w, b=None: adaptive_conv2d(x, boxes, w, b, stride=4, backend=backend).add_(1),  # noqa: B023
            grad,
            *[x.to(torch.float64) if backend == "reference" else x for x in inputs],
        )
        for backend in ("reference", "triton")
    )
    for a, e in zip(actual, expected, strict=True):
        scale = 1 + e.abs().max().item() if e.numel() else 1
        torch.testing.assert_close(a.double(), e, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)]
)
def test_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    inputs = (torch.randn(2, 40, 5, 9), torch.randn(70, 40, 3, 3) / 19, torch.randn(70))
    boxes = jittered_boxes(2, 5, 9, 4).float()
    compare(boxes, tuple(x.to(dtype) for x in inputs), tolerance)


@pytest.mark.parametrize(
    ("images", "channels", "height", "width", "out_channels"),
    [(0, 3, 4, 5, 2), (2, 3, 1, 1, 5), (1, 1, 1, 7, 1), (1, 130, 8, 11, 140)],
)
def test_sizes(images: int, channels: int, height: int, width: int, out_channels: int) -> None:
    """No image, single cells, and more of everything than one block has."""
    boxes = jittered_boxes(images, height, width, 4).float()
    weight = torch.randn(out_channels, channels, 3, 3)
    compare(boxes, (torch.randn(images, channels, height, width), weight), 1e-6)


@pytest.mark.parametrize("shift", [0.0, -16.0, 1e5])
def test_boxes_outside(shift: float) -> None:
    boxes = jittered_boxes(2, 4, 6, 4).float() + shift
    compare(boxes, (torch.randn(2, 3, 4, 6), torch.randn(2, 3, 3, 3), torch.randn(2)), 1e-6)


def test_boxes_not_finite_and_features_not_finite() -> None:
    boxes, bad = non_finite_boxes(4, 5)
    boxes = boxes.float()
    inputs = (torch.randn(1, 3, 4, 5), torch.randn(2, 3, 3, 3), torch.randn(2))
    compare(boxes, inputs, 1e-6)
    out = adaptive_conv2d(
        torch.full_like(inputs[0], torch.nan), boxes, *inputs[1:], stride=4, backend="triton"
    )
    assert torch.equal(out.flatten(2)[0, :, bad], inputs[2][:, None].expand(2, 4))


def test_many_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight's gradient in several stretches of cells, and another memory format."""
    monkeypatch.setattr(triton_cuda, "_CELLS_PER_SUM", 32)
    feature = torch.randn(2, 4, 7, 9).contiguous(memory_format=torch.channels_last)
    compare(jittered_boxes(2, 7, 9, 4).float(), (feature, torch.randn(3, 4, 3, 3)), 1e-6)


def test_operator_is_registered_properly() -> None:
    feature = torch.randn(1, 3, 2, 3, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, requires_grad=True)
    boxes = jittered_boxes(1, 2, 3, 4).float()
    torch.library.opcheck(operators.triton, (feature, boxes, weight, None, 4.0))


def test_deterministic_algorithms() -> None:
    inputs = (torch.randn(1, 2, 3, 4), torch.randn(2, 2, 3, 3))
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="not deterministic"):
            compare(jittered_boxes(1, 3, 4, 4).float(), inputs, 1e-6)
        torch.use_deterministic_algorithms(True, warn_only=True)
        with pytest.warns(UserWarning, match="not deterministic"):
            compare(jittered_boxes(1, 3, 4, 4).float(), inputs, 1e-6)
    finally:
        torch.use_deterministic_algorithms(False)


def test_no_float64() -> None:
    inputs = (torch.zeros(1, 2, 3, 4).double(), torch.zeros(1, 12, 4), torch.zeros(2, 2, 3, 3))
    with pytest.raises(ValueError, match="no float64"):
        adaptive_conv2d(*inputs[:2], inputs[2].double(), stride=4, backend="triton")
