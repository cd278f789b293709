"""Weights of attention modules, as their authors and timm name and shape them, in our form."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["convert_attention", "eca_kernel_sizes"]

_AUTHORS = {
    "ChannelGate.mlp.1.": "channel_gate.fc1.",
    "ChannelGate.mlp.3.": "channel_gate.fc2.",
    "SpatialGate.spatial.": "spatial_gate.",
}
_TIMM = {
    "channel.": "channel_gate.",
    "spatial.conv.": "spatial_gate.",
}
_MODULE = ".attention."


def convert_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the entries below any module called "attention"; the others pass unchanged.

    Known are CBAM and ECA of their authors, and CBAM, ECA and SE of timm. timm's CBAM pools
    [mean, max] where the authors' and ours pool [max, mean], so the two input channels of its
    spatial convolution change places; it has no biases by default, for which ours get zeros.

    Args:
        state: entries such as ``res2.0.attention.ChannelGate.mlp.1.weight``.
    """
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        prefix, found, tail = name.rpartition(_MODULE)
        if not found:
            converted[name] = value
            continue
        ours = _replace_start(tail, _AUTHORS | _TIMM)
        if tail == "spatial.conv.conv.weight":
            value = value.flip(1)
        if re.search(r"fc\d\.weight$", ours):
            value = value.flatten(1)  # timm's fully connected layers are 1x1 convolutions
        converted[prefix + found + ours] = value
        if tail in ("channel.fc1.weight", "channel.fc2.weight"):
            bias = tail.replace("weight", "bias")
            if prefix + found + bias not in state:
                zeros = torch.zeros_like(value[:, 0])
                converted[prefix + found + _replace_start(bias, _TIMM)] = zeros
    return converted


def _replace_start(text: str, table: Mapping[str, str]) -> str:
    for start, replacement in table.items():
        if text.startswith(start):
            return replacement + text.removeprefix(start)
    return text


def eca_kernel_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """ECA's kernel size in each stage: {"res2": 3, ...}; empty without ECA.

    Args:
        state: under our names.
    """
    sizes = {}
    for name, value in state.items():
        stage = re.search(r"\bres\d\b", name)
        if stage and name.endswith(f"{_MODULE}conv.weight") and value.dim() == 3:
            sizes[stage[0]] = value.shape[2]
    return sizes
