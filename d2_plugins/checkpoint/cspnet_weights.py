"""Published CSPNet weights under our names: timm's checkpoints and darknet's ``.weights`` files.

Pure functions from tensors to tensors; what they return is the whole state dict of a CSPNet, except
for counters of batches and for attention that the file does not have.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from detectron2.layers import Conv2d
from torch import Tensor

from ..modeling.backbone import CSPNet

__all__ = [
    "DARKNET_LEAKY_SLOPE",
    "convert_darknet_cspnet",
    "convert_timm_cspnet",
    "read_darknet_weights",
]

DARKNET_LEAKY_SLOPE = 0.1
"""Value of ``MODEL.CSPNET.LEAKY_SLOPE`` for darknet's weights; timm's need 0.01.

Darknet's images are RGB in [0, 1]: pixel mean 0, pixel std 255.
"""

_DARKNET_ARCHS = ("cspdarknet53", "darknet53")
_STAGE = re.compile(r"^stages[._](\d+)\.")
_STEM = re.compile(r"^stem[._](?=conv\d)")


def convert_timm_cspnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of a timm CSPNet, with or without ``features_only``.

    Args:
        state: state dict of timm's ``CspNet``.

    Raises:
        ValueError: the state dict holds an entry that our CSPNets do not have.
    """
    stages = {int(match[1]) for match in map(_STAGE.match, state) if match}
    # Five stages begin at stride 2 (DarkNet-like networks), four at stride 4.
    first = 1 if len(stages) == 5 else 2
    converted = {_timm_name(name, first): value for name, value in state.items()}
    if len(converted) != len(state):
        raise ValueError("two entries of the timm checkpoint would get the same name")
    return converted


def _timm_name(name: str, first_stage: int) -> str:
    if name.startswith("head.fc."):
        return name.replace("head.fc.", "linear.", 1)
    renamed = _STEM.sub("stem.", name)
    renamed = _STAGE.sub(lambda match: f"res{int(match[1]) + first_stage}.", renamed)
    if renamed.split(".")[0] not in ("stem", *(f"res{i}" for i in range(1, 6))):
        raise ValueError(f"'{name}' is not an entry of a timm CSPNet checkpoint")
    # ConvNormAct holds .conv and .bn; ours is a convolution that holds its .norm.
    renamed = re.sub(r"\b(conv(?:\d|_\w+))\.conv\.", r"\1.", renamed)
    renamed = re.sub(r"\b(conv(?:\d|_\w+))\.bn\.", r"\1.norm.", renamed)
    return re.sub(r"\.attn\d?\.", ".attention.", renamed)


def read_darknet_weights(path: str | Path) -> Tensor:
    """Return the numbers of a darknet ``.weights`` file without its header as a float32 vector.

    The header is three int32 (major, minor, revision) and a count of images seen, which is an int64
    from version 0.2 on and an int32 before.

    Raises:
        ValueError: the file is not a complete ``.weights`` file.
    """
    content = Path(path).read_bytes()
    if len(content) < 16:
        raise ValueError(f"'{path}' is too short for a darknet weights file")
    major, minor, _ = np.frombuffer(content, dtype="<i4", count=3)
    header = 20 if major * 10 + minor >= 2 else 16
    if not (0 <= major < 1000 and 0 <= minor < 1000) or (len(content) - header) % 4:
        raise ValueError(f"'{path}' is not a darknet weights file, or is cut short")
    return torch.from_numpy(np.frombuffer(content, dtype="<f4", offset=header).copy())


def convert_darknet_cspnet(values: Tensor, arch: str) -> dict[str, Tensor]:
    """Sort the numbers of a darknet file into the entries of a CSPNet.

    Darknet writes its layers in order, each as bias, [norm weight, running mean, running variance,]
    convolution weight. In a cross stage it has two 1x1 convolutions (cross path, then block path)
    where ours has one, and it fuses [block, cross] where ours fuses [cross, block].

    Args:
        values: from :func:`read_darknet_weights`.
        arch: cspdarknet53 or darknet53.

    Returns:
        State dict entries, the classifier's included if the file has one.

    Raises:
        ValueError: an architecture that differs from darknet's, or a file of the wrong length.
    """
    if arch not in _DARKNET_ARCHS:
        raise ValueError(
            f"darknet weights fit {' and '.join(_DARKNET_ARCHS)}, not '{arch}': darknet's "
            "CSPResNe(X)t-50 splits its first stage unevenly and adds a partial shortcut there, "
            "which timm's layout (ours) does not have. Use timm's weights for it."
        )
    reader = _Reader(values)
    state: dict[str, Tensor] = {}
    for name, shape in _conv_shapes(arch):
        if name.endswith("conv_exp"):
            half = (shape[0] // 2, *shape[1:])
            cross, block = reader.conv(half), reader.conv(half)
            entries = {key: torch.cat([cross[key], block[key]]) for key in cross}
        else:
            entries = reader.conv(shape)
        if name.endswith("conv_transition"):
            block_half, cross_half = entries["weight"].chunk(2, dim=1)
            entries["weight"] = torch.cat([cross_half, block_half], dim=1)
        state.update({f"{name}.{key}": value for key, value in entries.items()})
    if reader.left:
        state.update(reader.classifier(in_channels=shape[0]))
    return state


def _conv_shapes(arch: str) -> Iterator[tuple[str, torch.Size]]:
    """Every convolution's name and weight shape, in the order of execution."""
    with torch.device("meta"):
        model = CSPNet(arch=arch)
    for name, module in model.named_modules():
        if isinstance(module, Conv2d):
            yield name, module.weight.shape


class _Reader:
    """Takes one layer after another from a vector."""

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._position = 0

    @property
    def left(self) -> int:
        return len(self._values) - self._position

    def take(self, *shape: int) -> Tensor:
        count = int(np.prod(shape))
        if count > self.left:
            raise ValueError(
                f"the darknet file ends after {len(self._values)} numbers; this architecture "
                "needs more"
            )
        self._position += count
        return self._values[self._position - count : self._position].reshape(shape).clone()

    def conv(self, shape: tuple[int, ...]) -> dict[str, Tensor]:
        norms = ("norm.bias", "norm.weight", "norm.running_mean", "norm.running_var")
        entries = {name: self.take(shape[0]) for name in norms}
        if (entries["norm.running_var"] < 0).any():
            raise ValueError(
                "the darknet file has a negative variance where this architecture expects a norm: "
                "it belongs to another architecture"
            )
        return {**entries, "weight": self.take(*shape)}

    def classifier(self, in_channels: int) -> dict[str, Tensor]:
        classes, rest = divmod(self.left, in_channels + 1)
        if rest:
            raise ValueError(
                f"{self.left} numbers of the darknet file are left over behind the last stage; "
                f"a classifier on {in_channels} channels would leave a multiple of "
                f"{in_channels + 1}"
            )
        return {
            "linear.bias": self.take(classes),
            "linear.weight": self.take(classes, in_channels),
        }
