"""ResNet weights of torchvision, timm and the authors of CBAM and ECA-Net under detectron2's names.

Pure functions from names and tensors to names and tensors.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from .attention_weights import convert_attention

__all__ = ["convert_resnet", "is_torch_resnet"]

# What the others call the attention module of a block.
_ATTENTION = re.compile(r"^(res\d\.\d+)\.(?:cbam|eca|se)\.")


def is_torch_resnet(state: Mapping[str, Tensor]) -> bool:
    """Return True if the names are torchvision's (``layer1.0.conv1.weight``)."""
    return "conv1.weight" in state and any(name.startswith("layer1.") for name in state)


def convert_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of a ResNet of torchvision, of timm, or of an attention paper's authors.

    The classifier is called "linear" afterwards, as in detectron2's ResNet. Entries with names that
    these networks do not have keep them.

    Args:
        state: with names such as ``layer1.0.bn1.weight``.
    """
    return convert_attention({_detectron2_name(name): value for name, value in state.items()})


def _detectron2_name(name: str) -> str:
    if name.startswith("fc."):
        return f"linear.{name.removeprefix('fc.')}"
    name = re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", name)
    name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
    name = re.sub(r"^(stem|res\d\.\d+)\.bn(\d)\.", r"\1.conv\2.norm.", name)
    name = name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
    return _ATTENTION.sub(r"\1.attention.", name)
