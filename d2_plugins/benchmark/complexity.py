"""Multiply-adds and activations of a detector, part by part.

fvcore's conventions: one multiply-add is one FLOP; an activation is a number that a convolution, a
linear layer or a matrix product puts out. Counted are these three, the adaptive (or deformable)
convolution and RoIAlign. Not counted is what costs little beside them: norms, activation functions,
arithmetic on single elements, pooling, resizing, sorting and NMS.

fvcore's own counter traces the model, computes everything on the way, and knows neither of the last
two. Here operators are watched as they are dispatched, and the slow ones are not computed but give
zeros: a detector for 800 x 1216 takes seconds.
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

# Bilinear interpolation: the weighted sum of four numbers.
_PER_SAMPLE = 4
# RoIAlign's own choice depends on the size of the RoI: 2 x 2 points in a bin are the usual.
_ADAPTIVE_POINTS = 4

# Prefixes of modules, numbers of lists left out, and what the part is called; the longest wins.
_PARTS = {
    "backbone.bottom_up": "backbone",
    "backbone": "FPN",
    "proposal_generator": "proposal generator",
    "head": "dense head",
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
    """What one call of a model cost.

    Attributes:
        flops: multiply-adds, by the name of the module that ran the operator and the operator.
        activations: in the same way.
    """

    flops: Counter[tuple[str, str]] = field(default_factory=Counter)
    activations: Counter[tuple[str, str]] = field(default_factory=Counter)

    def by_operator(self) -> dict[str, int]:
        """Multiply-adds of the whole model."""
        sums: Counter[str] = Counter()
        for (_, operator), count in self.flops.items():
            sums[operator] += count
        return dict(sums)


@torch.no_grad()
def count_costs(model: nn.Module, run: Callable[[], object]) -> Costs:
    """Count one call of a model, or of something that calls it.

    The adaptive convolution counts as "adaptive_conv" (the product with the weights) and
    "adaptive_conv_sampling" (four per interpolated value), torchvision's deformable one likewise,
    RoIAlign as "roi_align" (four per point, and 2 x 2 points a bin where it chooses by itself).

    Args:
        model: whose modules are named.
        run: calls it. Everything that it computes from convolutions is zero.
    """
    mode = _Counting()
    with _names(model, mode.running), mode:
        run()
    return mode.costs


@contextmanager
def _names(model: nn.Module, running: list[str]) -> Iterator[None]:
    """Keeps the names of the modules that are running in ``running``, the innermost last."""

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
    """Counts operators and gives zeros for the slow ones, of which only the shapes are wanted."""

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
    """Of (..., M, K) at the argument ``first`` with (..., K, N)."""
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
    """Counts summed up by the parts that a detector has.

    Args:
        model: the detector.
        counts: by the name of a module or parameter of it.
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
