"""The inference form of a detector: the same detections in less time.

Frozen and batch norms are folded into the convolutions before them, memory is channels-last where
that is faster, and parts that only training needs are dropped.
"""

import copy
import logging
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torchvision.ops.misc import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from .backbone.cspnet_blocks import ConvNormAct
from .backbone.timm_backbone import TimmBackbone
from .proposal_generator import CascadeRPN
from .roi_heads import InvertedAttentionMixin
from .roi_heads.double_head_predictor import DoubleHeadOutputLayers

__all__ = ["inference_form"]

logger = logging.getLogger(__name__)

# Only the shapes of this image matter. Models of timm with a fixed size mostly have this one.
_PROBE_SIZE = 224


def inference_form(model: nn.Module, *, channels_last: bool | None = None) -> nn.Module:
    """Return a copy of a model that detects the same in less time.

    The detections are equal up to the rounding of float32. The copy cannot be trained: its
    ``state_dict`` has other keys, and no parameter has a gradient. Norms that no convolution
    precedes, GroupNorm and LayerNorm stay as they are.

    Args:
        model: a detector in eval mode.
        channels_last: store the weights channels-last, and so compute the feature maps. None does
            it where it has been measured to be faster: on the CPU, but not with a Cascade RPN.

    Raises:
        ValueError: the model is in training mode, in which batch norms have no fixed statistics.
    """
    if model.training:
        raise ValueError("the inference form is that of a model in eval mode: call model.eval()")
    model = copy.deepcopy(model).requires_grad_(False)
    module: Any
    for module in list(model.modules()):
        if type(module) in (Conv2d, ConvNormAct) and _is_foldable(module.norm):
            _fold(module, module.norm)
            module.norm = None
        elif isinstance(module, TimmBackbone):
            _fold_timm(module.features)
        else:
            _drop_training_parts(module)
    if channels_last is None:
        on_cpu = next(model.parameters(), torch.empty(0)).device.type == "cpu"
        channels_last = on_cpu and not any(isinstance(m, CascadeRPN) for m in model.modules())
    return model.to(memory_format=torch.channels_last) if channels_last else model


def _is_foldable(norm: nn.Module | None) -> bool:
    """Return True for norms that are a fixed factor and offset of each channel."""
    from timm.layers import FrozenBatchNormAct2d

    if isinstance(norm, FrozenBatchNorm2d | TorchvisionFrozenBatchNorm2d | FrozenBatchNormAct2d):
        return True
    return isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) and norm.track_running_stats


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: Any) -> None:
    """Multiply the norm into the weight and the bias of the convolution before it."""
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    conv.requires_grad_(False)


def _fold_timm(features: nn.Module) -> None:
    """Fold the norms of a timm model, whose modules do not say which layer follows which."""
    try:
        pairs = _find_pairs(features)
    except Exception as error:  # e.g. an operator without a meta kernel, or a fixed image size
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning("The norms of the timm backbone are not folded: %s", reason)
        return
    modules: dict[str, Any] = dict(features.named_modules())
    for conv_name, norm_name in pairs:
        norm = modules[norm_name]
        _fold(modules[conv_name], norm)
        parent, _, child = norm_name.rpartition(".")
        # timm's BatchNormAct2d ends with an activation.
        setattr(modules[parent], child, getattr(norm, "act", nn.Identity()))


def _find_pairs(features: nn.Module) -> list[tuple[str, str]]:
    """Return the names of the (convolution, norm) pairs of a timm model.

    In a pair, each is called once, and the norm is the only operator that reads the output of the
    convolution. This is found by running a copy of the model without data, on the meta device.
    """
    from timm.layers import Conv2dSame

    probe = copy.deepcopy(features).to("meta")
    convs = [n for n, m in probe.named_modules() if type(m) in (nn.Conv2d, Conv2dSame)]
    norms = [n for n, m in probe.named_modules() if _is_foldable(m)]
    if not (convs and norms):
        return []
    outputs: dict[str, list[Tensor]] = {name: [] for name in convs}
    inputs: dict[str, list[Tensor]] = {name: [] for name in norms}
    for name in convs:
        hook = lambda _, __, output, name=name: outputs[name].append(output)  # noqa: E731
        probe.get_submodule(name).register_forward_hook(hook)
    for name in norms:
        pre_hook = lambda _, args, name=name: inputs[name].append(args[0])  # noqa: E731
        probe.get_submodule(name).register_forward_pre_hook(pre_hook)
    first: Any = probe.get_submodule(convs[0])
    image = torch.empty(1, first.in_channels, _PROBE_SIZE, _PROBE_SIZE, device="meta")
    with torch.no_grad(), _CountReads() as reads:
        results = probe(image)
    returned = {id(result) for result in tree_iter(results)}
    made_by = {id(x): name for name, (x, *more) in _called(outputs) if not more}
    return [
        (made_by[id(x)], norm)
        for norm, (x, *more) in _called(inputs)
        if not more and id(x) in made_by and id(x) not in returned and reads.counts[id(x)] == 1
    ]


def _called(tensors: dict[str, list[Tensor]]) -> list[tuple[str, list[Tensor]]]:
    return [(name, seen) for name, seen in tensors.items() if seen]


class _CountReads(TorchDispatchMode):
    """Count how often each tensor is an argument of an operator, by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, int] = {}
        self._alive: list[object] = []  # so that no id is given away twice

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self, func, types, args=(), kwargs=None
    ):
        for x in tree_iter((args, kwargs)):
            if isinstance(x, Tensor):
                self.counts[id(x)] = self.counts.get(id(x), 0) + 1
                self._alive.append(x)
        return func(*args, **(kwargs or {}))


def _drop_training_parts(module: nn.Module) -> None:
    if isinstance(module, InvertedAttentionMixin):
        module.inverted_attention = None
    elif isinstance(module, DoubleHeadOutputLayers):
        module.drop_unused_layers()
