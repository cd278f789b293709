"""Multiply-adds and activations of a detector, by part.

The conventions are fvcore's: one multiply-add is one FLOP, and activations are the outputs of
convolutions, linear layers and matrix products. Counted are these three, the adaptive and the
deformable convolution, and RoIAlign. Not counted are cheap operators: norms, activation functions,
element-wise arithmetic, pooling, resizing, sorting and NMS.

Operators are counted as they are dispatched. The expensive ones are not computed, they return
zeros, so that a detector for 800 x 1216 pixels takes seconds. fvcore's counter has neither the
adaptive convolution nor RoIAlign, and traces the model. PyTorch's ``FlopCounterMode`` computes
every operator, does not count activations, and names modules relative to the outermost module that
is called, which is each part by itself in :class:`.fixed_work.FixedWork`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torchvision  # noqa: F401  # registers operators
from fvcore.nn.jit_handles import conv_flop_count
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ..layers.adaptive_conv import operators  # noqa: F401  # registers operators

__all__ = ["Costs", "count_costs", "parts_of"]

# Bilinear interpolation is a weighted sum of four values.
_PER_SAMPLE = 4
# With sampling_ratio 0 the number of points depends on the size of the RoI; 2 x 2 is typical.
_ADAPTIVE_POINTS = 4

# Name of the part by prefix of the module's name, without list indices; the longest prefix wins.
_PARTS = {
    "backbone.bottom_up": "backbone",
    "backbone": "FPN",
    "proposal_generator": "proposal generator",
    "head": "dense head",
    "sem_seg_head": "semantic head",
    "roi_heads.box_pooler": "box pooler",
    "roi_heads.box_head.fc_head": "fc head",
    "roi_heads.box_head.conv_head": "conv head",
    "roi_heads.box_head": "box head",
    "roi_heads.box_predictor": "box predictor",
    "roi_heads.mask_pooler": "mask pooler",
    "roi_heads.mask_head": "mask head",
    "roi_heads.keypoint_pooler": "keypoint pooler",
    "roi_heads.keypoint_head": "keypoint head",
    "roi_heads": "RoI heads, rest",
}
_REST = "rest"


@dataclass
class Costs:
    """Costs of one call of a model.

    Attributes:
        flops: number of multiply-adds by (module name, operator).
        activations: number of activations by (module name, operator).
    """

    flops: Counter[tuple[str, str]] = field(default_factory=Counter)
    activations: Counter[tuple[str, str]] = field(default_factory=Counter)

    def by_operator(self) -> dict[str, int]:
        """Return the multiply-adds of the whole model by operator."""
        sums: Counter[str] = Counter()
        for (_, operator), count in self.flops.items():
            sums[operator] += count
        return dict(sums)


@torch.no_grad()
def count_costs(model: nn.Module, run: Callable[[], object]) -> Costs:
    """Count the costs of one call of a model.

    The adaptive convolution counts as "adaptive_conv" (product with the weights) and
    "adaptive_conv_sampling" (four per interpolated value), and torchvision's deformable convolution
    likewise. RoIAlign counts as "roi_align" (four per sampling point, 2 x 2 points per bin if the
    sampling ratio is 0).

    Args:
        model: the model, for the names of its modules.
        run: a function that calls the model. Convolutions and products in it return zeros.
    """
    mode = _Counting()
    with _names(model, mode.running), mode:
        run()
    return mode.costs


@contextmanager
def _names(model: nn.Module, running: list[str]) -> Iterator[None]:
    """Keep the names of the running modules in ``running``, the innermost last."""

    def leave(*_: object) -> None:
        running.pop()

    handles = []
    for name, module in model.named_modules():
        enter = module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
        handles += [enter, module.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Counting(TorchDispatchMode):
    """Count the expensive operators, and return zeros of the right shape for them."""

    def __init__(self) -> None:
        super().__init__()
        self.costs = Costs()
        self.running = [""]

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self, func, types, args=(), kwargs=None
    ):
        kwargs = kwargs or {}
        if func not in _OPERATORS:
            return func(*args, **kwargs)
        device = next(x.device for x in args if isinstance(x, Tensor))
        shapes, named = tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
        out = torch.zeros_like(func(*shapes, **named), device=device)
        counts, activates = _OPERATORS[func](args, out)
        module = self.running[-1]
        for operator, count in counts.items():
            self.costs.flops[module, operator] += count
        if activates:
            self.costs.activations[module, next(iter(counts))] += out.numel()
        return out


_Counted = tuple[dict[str, int], bool]


def _conv(args: tuple[Any, ...], out: Tensor) -> _Counted:
    x, weight, transposed = args[0], args[1], args[6]
    shapes = list(x.shape), list(weight.shape), list(out.shape)
    return {"conv": int(conv_flop_count(*shapes, transposed=transposed))}, True


def _matrix_product(name: str, first: int) -> Callable[[tuple[Any, ...], Tensor], _Counted]:
    """Return a formula for the product of (..., M, K), the argument ``first``, and (..., K, N)."""
    return lambda args, out: ({name: out.numel() * args[first].shape[-1]}, True)


def _sampling_conv(name: str, weight_at: int) -> Callable[[tuple[Any, ...], Tensor], _Counted]:
    def count(args: tuple[Any, ...], out: Tensor) -> _Counted:
        x, weight = args[0], args[weight_at]
        cells = out.shape[0] * prod(out.shape[2:])
        samples = cells * x.shape[1] * prod(weight.shape[2:])
        product = cells * weight.numel()
        return {name: product, f"{name}_sampling": _PER_SAMPLE * samples}, True

    return count


def _roi_align(args: tuple[Any, ...], out: Tensor) -> _Counted:
    ratio = args[5]
    points = ratio**2 if ratio > 0 else _ADAPTIVE_POINTS
    return {"roi_align": _PER_SAMPLE * points * out.numel()}, False


_aten = torch.ops.aten
_vision = torch.ops.torchvision
_ours = torch.ops.d2_plugins
_OPERATORS: dict[object, Callable[[tuple[Any, ...], Tensor], _Counted]] = {
    _aten.convolution.default: _conv,
    _aten.addmm.default: _matrix_product("linear", 1),
    _aten.mm.default: _matrix_product("linear", 0),
    _aten.bmm.default: _matrix_product("matmul", 0),
    _aten.baddbmm.default: _matrix_product("matmul", 1),
    _vision.deform_conv2d.default: _sampling_conv("deform_conv", 1),
    _vision.roi_align.default: _roi_align,
    _ours.adaptive_conv2d_gather.default: _sampling_conv("adaptive_conv", 2),
    _ours.adaptive_conv2d_triton.default: _sampling_conv("adaptive_conv", 2),
}


def parts_of(model: nn.Module, counts: Mapping[str, int]) -> dict[str, int]:
    """Sum counts over the parts of a detector.

    Args:
        model: the detector.
        counts: counts by name of a module or parameter of the detector.

    Returns:
        The sums by name of the part, in the order in which the parts run.
    """
    names = _PARTS
    if not hasattr(getattr(model, "backbone", None), "bottom_up"):
        names = {**_PARTS, "backbone": "backbone"}
    sums: Counter[str] = Counter()
    for name, count in counts.items():
        sums[_part(name, names)] += count
    return {part: sums[part] for part in dict.fromkeys([*names.values(), _REST]) if sums[part]}


def _part(name: str, names: Mapping[str, str]) -> str:
    pieces = [piece for piece in name.split(".") if not piece.isdecimal()]
    for length in range(len(pieces), 0, -1):
        prefix = ".".join(pieces[:length])
        if prefix in names:
            return names[prefix]
    return _REST
