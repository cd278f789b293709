"""Conversion of training state to types that ``torch.load(weights_only=True)`` can read."""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["to_plain"]

_PLAIN = (str, bytes, bool, int, float, type(None), torch.Size, torch.dtype)


def to_plain(value: Any, where: str) -> Any:
    """Rebuild ``value`` from dicts, lists, tuples, sets, numbers, strings and tensors.

    Done before a checkpoint is written: an object of any other kind would be refused when the file
    is read, which is when a run is to be resumed.

    Args:
        value: a state dict or a part of one.
        where: its name in an error message.

    Raises:
        TypeError: a part of it has another type.
    """
    if isinstance(value, np.generic) and not isinstance(value, np.void):
        return value.item()
    if type(value) in _PLAIN or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Mapping):
        items = {
            to_plain(key, f"a key of {where}"): to_plain(item, f"{where}[{key!r}]")
            for key, item in value.items()
        }
        if type(value) is OrderedDict:
            return OrderedDict(items)
        return Counter(items) if type(value) is Counter else items
    if type(value) in (list, tuple, set):
        return type(value)(to_plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    raise TypeError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint holds "
        "plain containers, numbers, strings and tensors only, so that reading it runs no code"
    )
