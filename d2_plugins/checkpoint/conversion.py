"""Conversion of the names in weights files of several frameworks to those of a model."""

import logging
from collections.abc import Mapping

import torch
from detectron2.modeling.backbone import ResNet
from torch import Tensor, nn

from ..modeling.backbone import CSPNet, TimmBackbone
from .attention_weights import convert_attention, eca_kernel_sizes
from .cspnet_weights import DARKNET_LEAKY_SLOPE, convert_darknet_cspnet, convert_timm_cspnet
from .resnet_weights import convert_resnet, is_torch_resnet

__all__ = ["convert_darknet", "convert_names", "find_bottom_up"]

logger = logging.getLogger(__name__)

_TIMM_LEAKY_SLOPE = 0.01
_DARKNET_ARCHS = ("cspdarknet53", "darknet53")


def find_bottom_up(model: nn.Module) -> tuple[str, nn.Module]:
    """The part of a model that ImageNet weights are for, and its name with a dot behind.

    That is the backbone without its pyramid; a model without a ``backbone`` is taken to be one.
    """
    prefix = ""
    for name in ("backbone", "bottom_up"):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            prefix, model = f"{prefix}{name}.", part
    return prefix, model


def convert_names(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the entries of ``state`` to those of ``model``.

    Known: weights of the model itself; of its backbone alone, also if timm has trained it as one of
    :mod:`d2_plugins.timm_models`; and ImageNet weights of timm, torchvision and the authors of CBAM
    and ECA-Net for the backbone. Names that mean nothing to the model are passed on.

    Args:
        state: read from a file; a ``module.`` before all names is dropped.
        model: a detector or a backbone.

    Raises:
        ValueError: the weights want a setting that the model does not have.
    """
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    known = set(model.state_dict())
    if any(name in known for name in state):
        return dict(state)
    prefix, bottom_up = find_bottom_up(model)
    converted = _to_backbone(state, bottom_up)
    _check_kernel_sizes(converted, bottom_up)
    return {prefix + name: value for name, value in converted.items()}


def _to_backbone(state: Mapping[str, Tensor], bottom_up: nn.Module) -> dict[str, Tensor]:
    known = set(bottom_up.state_dict())
    if any(name in known for name in state):
        if "head.fc.weight" in state:  # a model of d2_plugins.timm_models
            _check_timm_model(bottom_up)
        return dict(state)
    if isinstance(bottom_up, TimmBackbone):
        return bottom_up.convert_names(state)
    if isinstance(bottom_up, CSPNet) and any(name.startswith("stages") for name in state):
        _check_slope(bottom_up, _TIMM_LEAKY_SLOPE, "timm's")
        return convert_attention(convert_timm_cspnet(state))
    if isinstance(bottom_up, ResNet) and is_torch_resnet(state):
        _check_stride(bottom_up)
        return convert_resnet(state)
    return dict(state)


def _check_timm_model(bottom_up: nn.Module) -> None:
    if isinstance(bottom_up, CSPNet):
        _check_slope(bottom_up, _TIMM_LEAKY_SLOPE, "timm's")
    elif isinstance(bottom_up, ResNet):
        _check_stride(bottom_up)


def convert_darknet(values: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Entries of ``model`` from the numbers of a darknet ``.weights`` file.

    Args:
        values: see :func:`d2_plugins.checkpoint.cspnet_weights.read_darknet_weights`.
        model: a detector on a CSPNet, or a CSPNet.

    Raises:
        ValueError: darknet's weights do not fit the model's backbone, or its leaky slope
            is not darknet's.
    """
    prefix, bottom_up = find_bottom_up(model)
    arch = next((arch for arch in _DARKNET_ARCHS if _is_arch(bottom_up, arch)), None)
    if arch is None:
        raise ValueError(
            "darknet weights fit MODEL.CSPNET.ARCH "
            f"{' and '.join(_DARKNET_ARCHS)}, at multipliers 1, only; see "
            "d2_plugins.checkpoint.convert_darknet_cspnet"
        )
    _check_slope(bottom_up, DARKNET_LEAKY_SLOPE, "darknet's")
    converted = convert_darknet_cspnet(values, arch)
    return {prefix + name: value for name, value in converted.items()}


def _is_arch(bottom_up: nn.Module, arch: str) -> bool:
    """Return True if all tensors of ``bottom_up`` except the attention are those of ``arch``."""
    if not isinstance(bottom_up, CSPNet):
        return False
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in CSPNet(arch=arch, num_classes=1).state_dict().items()}
    return all(
        ".attention." in name or name.startswith("linear.") or shapes.get(name) == value.shape
        for name, value in bottom_up.state_dict().items()
    )


def _check_slope(model: nn.Module, slope: float, whose: str) -> None:
    slopes = {m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)}
    if slopes - {slope}:
        raise ValueError(
            f"MODEL.CSPNET.LEAKY_SLOPE is {slopes.pop()}; with {whose} weights it must be {slope}"
        )


def _check_kernel_sizes(state: Mapping[str, Tensor], bottom_up: nn.Module) -> None:
    in_file = eca_kernel_sizes(state)
    in_model = eca_kernel_sizes(bottom_up.state_dict())
    if any(in_file.get(stage, size) != size for stage, size in in_model.items()):
        raise ValueError(
            f"The weights have ECA kernel sizes {in_file}, the model {in_model}: set "
            f"MODEL.ATTENTION.KERNEL_SIZES to {list(in_file.values())}"
        )


def _check_stride(resnet: ResNet) -> None:
    strided = [m for n, m in resnet.named_modules() if n.endswith(".conv1") and "stem" not in n]
    is_bottleneck = any(name.endswith(".conv3.weight") for name in resnet.state_dict())
    if is_bottleneck and any(conv.stride != (1, 1) for conv in strided):
        logger.warning(
            "MODEL.RESNETS.STRIDE_IN_1X1 is True, but these weights were trained with the stride "
            "in the 3x3 convolution: set it to False"
        )
