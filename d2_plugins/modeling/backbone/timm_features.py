"""Feature indices, names and module order of timm's ``features_only`` models.

No tensor is computed here: models are only created on the meta device.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import nearest

__all__ = ["count_frozen", "create_features", "feature_names", "name_in_whole_model"]

_DEFAULT_STRIDES = (4, 8, 16, 32)


def create_features(name: str, out_indices: Sequence[int], **options: Any) -> Any:
    """Create a timm model that returns features.

    Args:
        name: name of the model, with or without the tag of its weights.
        out_indices: timm's feature indices; empty for those at strides 4, 8, 16 and 32.
        options: other arguments of ``timm.create_model``.

    Raises:
        ValueError: the name is unknown, or the model does not have the indices.
        OSError: the requested weights cannot be downloaded.
    """
    import timm

    if not timm.is_model(name):
        raise ValueError(
            f"MODEL.TIMM.NAME is '{name}'; nearest in timm {timm.__version__}: "
            f"{nearest(name.split('.')[0], timm.list_models(), count=5)}"
        )
    indices = tuple(out_indices) or _default_indices(name)
    try:
        return timm.create_model(name, features_only=True, out_indices=indices, **options)
    except (AssertionError, IndexError) as error:
        raise ValueError(
            f"MODEL.TIMM.OUT_INDICES is {list(out_indices)}; allowed for '{name}' (index: stride): "
            f"{dict(enumerate(_strides(name)))}"
        ) from error
    except OSError as error:
        raise OSError(
            f"MODEL.TIMM.PRETRAINED is True, but the weights of '{name}' are not in the cache and "
            f"cannot be downloaded: {error}\nFetch the file on a machine with network access and "
            "set MODEL.TIMM.CHECKPOINT to its path."
        ) from error


def _strides(name: str) -> list[int]:
    """Return the strides of all features of a timm model, by index."""
    import timm

    with torch.device("meta"):
        info = timm.create_model(name).feature_info
    return [entry["reduction"] for entry in getattr(info, "info", info)]


def _default_indices(name: str) -> tuple[int, ...]:
    last = {stride: index for index, stride in enumerate(_strides(name))}
    indices = tuple(last[stride] for stride in _DEFAULT_STRIDES if stride in last)
    if not indices:
        raise ValueError(
            f"MODEL.TIMM.OUT_INDICES is empty, but '{name}' has no feature at strides 4 to 32; "
            f"allowed (index: stride): {dict(enumerate(_strides(name)))}"
        )
    return indices


def feature_names(name: str, strides: Sequence[int]) -> list[str]:
    """Return detectron2's names of features: "res2" at stride 4, "res3" at 8, and so on.

    Args:
        name: name of the model, for the error message.
        strides: strides of the features, in image pixels.

    Raises:
        ValueError: a stride occurs twice or is not a power of two.
    """
    if len(set(strides)) != len(strides) or any(stride & (stride - 1) for stride in strides):
        raise ValueError(
            f"MODEL.TIMM.OUT_INDICES select the strides {list(strides)} of '{name}'; allowed: "
            "different powers of two"
        )
    return [f"res{int(math.log2(stride))}" for stride in strides]


def name_in_whole_model(name: str, state: Mapping[str, Tensor]) -> str | None:
    """Return an entry's name in the whole model's state; None if the state does not have it.

    Args:
        name: name of the entry in the ``features_only`` model.
        state: state dict of the whole model.
    """
    head, dot, tail = name.partition(".")
    if head in ("body", "model"):  # timm's wrappers that do not flatten the model
        return tail if tail in state else None
    # One level of Sequential is flattened: stages.0 -> stages_0.
    parts = head.split("_")
    heads = [head] + [f"{'_'.join(parts[:i])}.{'_'.join(parts[i:])}" for i in range(1, len(parts))]
    return next((h + dot + tail for h in heads if h + dot + tail in state), None)


def count_frozen(features: Any, names: list[str], freeze_at: int) -> int:
    """Return the number of modules to freeze, counted in order of definition.

    Args:
        features: model from :func:`create_features`.
        names: names of all its modules, in order of definition.
        freeze_at: ``MODEL.BACKBONE.FREEZE_AT``; k >= 2 freezes everything up to the feature at
            stride 2^k.
    """
    if freeze_at < 1:
        return 0
    taps = [
        (entry["reduction"], _module_index(entry["module"], names))
        for entry in features.feature_info.info
    ]
    reached = [(begin, end) for stride, (begin, end) in taps if stride <= 2**freeze_at]
    if reached:
        return reached[-1][1]
    # No feature at or below this stride: freeze the stem, the modules before the first feature.
    return taps[0][1][0]


def _module_index(tap: str, names: list[str]) -> tuple[int, int]:
    """Return the index range of a feature's module in ``names``; (n, n) if it was removed."""
    candidates = {tap, tap.replace(".", "_", 1), f"body.{tap}", f"model.{tap}"}
    module = next((name for name in names if name in candidates), None)
    if module is None:
        return len(names), len(names)
    begin = names.index(module)
    inside = [i for i, name in enumerate(names) if name == module or name.startswith(module + ".")]
    return begin, inside[-1] + 1
