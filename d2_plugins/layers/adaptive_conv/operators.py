"""The fast adaptive convolutions as PyTorch operators.

They are registered with ``torch.library``, together with their result's shape and their gradients,
so that ``torch.compile`` treats each as one opaque node:

- ``d2_plugins::adaptive_conv2d_gather``, :mod:`.gather_cpu`;
- ``d2_plugins::adaptive_conv2d_triton``, :mod:`.triton_cuda`.

Both return channels-last memory, and the gradient of the feature in the feature's own format. They
can be differentiated once.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .geometry import empty_result

__all__ = ["gather", "triton"]

_FORWARD = "(Tensor feature, Tensor boxes, Tensor weight, Tensor? bias, float stride) -> Tensor"
_BACKWARD = (
    "(Tensor grad, Tensor feature, Tensor boxes, Tensor weight, float stride, bool need_feature, "
    "bool need_weight) -> (Tensor, Tensor)"
)

Operator = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]


def _fake_forward(
    feature: Tensor, boxes: Tensor, weight: Tensor, bias: Tensor | None, stride: float
) -> Tensor:
    return empty_result(feature, weight)


def _fake_backward(
    grad: Tensor,
    feature: Tensor,
    boxes: Tensor,
    weight: Tensor,
    stride: float,
    need_feature: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(feature) if need_feature else feature.new_empty(0),
        torch.empty_like(weight) if need_weight else weight.new_empty(0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    feature, boxes, weight, _, stride = inputs
    ctx.save_for_backward(feature, boxes, weight)
    ctx.stride = stride


def _define(name: str, module: str) -> Operator:
    """Register one implementation.

    Args:
        name: name of the operator.
        module: sibling module with ``forward`` and ``backward``, imported at the first call.
    """

    def implementation(function: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            call = getattr(import_module(f".{module}", __package__), function)
            # The dtypes are final here; autocast would change those of intermediate steps.
            with torch.autocast(args[0].device.type, enabled=False):
                return call(*args)

        return run

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_feature, _, need_weight, need_bias, _ = ctx.needs_input_grad
        grad_feature = grad_weight = grad_bias = None
        if need_feature or need_weight:
            grad_feature, grad_weight = backward(
                grad, *ctx.saved_tensors, ctx.stride, need_feature, need_weight
            )
        if need_bias:
            grad_bias = grad.sum(dim=(0, 2, 3))
        return (
            grad_feature if need_feature else None,
            None,
            grad_weight if need_weight else None,
            grad_bias,
            None,
        )

    define = torch.library.custom_op
    forward = define(
        f"d2_plugins::{name}", implementation("forward"), mutates_args=(), schema=_FORWARD
    )
    backward = define(
        f"d2_plugins::{name}_backward",
        implementation("backward"),
        mutates_args=(),
        schema=_BACKWARD,
    )
    forward.register_fake(_fake_forward)
    backward.register_fake(_fake_backward)
    forward.register_autograd(differentiate, setup_context=_save)
    return forward


gather = _define("adaptive_conv2d_gather", "gather_cpu")
triton = _define("adaptive_conv2d_triton", "triton_cuda")
