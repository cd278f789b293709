"""What timm's ``features_only`` models do not say themselves: indices by stride, names, order.

Shapes and names only; no tensor is computed here.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["count_frozen", "create_features", "feature_names", "name_in_whole_model"]

_DEFAULT_STRIDES = (4, 8, 16, 32)


def create_features(name: str, out_indices: Sequence[int], **options: Any) -> Any:
    """A timm model that returns features.

    Args:
        name: of the model, with or without the tag of its weights.
        out_indices: timm's feature indices; empty takes those at strides 4, 8, 16 and 32.
        options: as ``timm.create_model``.

    Raises:
        ValueError: an unknown name, or indices that the model does not have.
        OSError: its weights were asked for and cannot be downloaded.
    """
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5, cutoff=0.4)
        raise ValueError(
            f"MODEL.TIMM.NAME is '{name}', which timm {timm.__version__} does not have; nearest: "
            f"{', '.join(near) or 'none'}"
        )
    indices = tuple(out_indices) or _default_indices(name)
    try:
        return timm.create_model(name, features_only=True, out_indices=indices, **options)
    except (AssertionError, IndexError) as error:
        raise ValueError(
            f"MODEL.TIMM.OUT_INDICES is {list(out_indices)}; '{name}' has the indices and strides "
            f"{dict(enumerate(_strides(name)))}"
        ) from error
    except OSError as error:
        raise OSError(
            f"MODEL.TIMM.PRETRAINED: the weights of '{name}' are neither in the cache nor to be "
            f"had: {error}\nFetch the file on a machine with access and set MODEL.TIMM.CHECKPOINT "
            "to it."
        ) from error


def _strides(name: str) -> list[int]:
    """Strides of all features of a timm model, by index."""
    import timm

    with torch.device("meta"):
        info = timm.create_model(name).feature_info
    return [entry["reduction"] for entry in getattr(info, "info", info)]


def _default_indices(name: str) -> tuple[int, ...]:
    last = {stride: index for index, stride in enumerate(_strides(name))}
    indices = tuple(last[stride] for stride in _DEFAULT_STRIDES if stride in last)
    if not indices:
        raise ValueError(
            f"MODEL.TIMM.OUT_INDICES is empty, but '{name}' has no feature at strides 4 to 32; its "
            f"indices and strides are {dict(enumerate(_strides(name)))}"
        )
    return indices


def feature_names(name: str, strides: Sequence[int]) -> list[str]:
    """detectron2's names of features at ``strides``: "res2" at 4, "res3" at 8, and so on.

    Args:
        name: of the model, for the message.
        strides: in image pixels.

    Raises:
        ValueError: a stride twice, or one that is no power of two.
    """
    if len(set(strides)) != len(strides) or any(stride & (stride - 1) for stride in strides):
        raise ValueError(
            f"MODEL.TIMM.OUT_INDICES choose strides {list(strides)} of '{name}'; allowed are "
            "different powers of two"
        )
    return [f"res{int(math.log2(stride))}" for stride in strides]


def name_in_whole_model(name: str, state: Mapping[str, Tensor]) -> str | None:
    """The name in a whole model of an entry of a features_only one; None if it is not there."""
    head, dot, tail = name.partition(".")
    if head in ("body", "model"):  # timm's wrappers that leave the model in one piece
        return tail if tail in state else None
    # One level of Sequential is flattened: stages.0 -> stages_0.
    parts = head.split("_")
    heads = [head] + [f"{'_'.join(parts[:i])}.{'_'.join(parts[i:])}" for i in range(1, len(parts))]
    return next((h + dot + tail for h in heads if h + dot + tail in state), None)


def count_frozen(features: Any, names: list[str], freeze_at: int) -> int:
    """How many of a model's modules, in order of definition, are frozen.

    Args:
        features: from :func:`create_features`.
        names: of all its modules, in order.
        freeze_at: ``MODEL.BACKBONE.FREEZE_AT``; k freezes what leads to a feature at stride 2^k.
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
    # No feature before stride 4: the stem is all that comes before the first feature's module.
    return taps[0][1][0]


def _module_index(tap: str, names: list[str]) -> tuple[int, int]:
    """Where the module of a feature begins and ends in ``names``; (n, n) if it was cut off."""
    candidates = {tap, tap.replace(".", "_", 1), f"body.{tap}", f"model.{tap}"}
    module = next((name for name in names if name in candidates), None)
    if module is None:
        return len(names), len(names)
    begin = names.index(module)
    inside = [i for i, name in enumerate(names) if name == module or name.startswith(module + ".")]
    return begin, inside[-1] + 1
