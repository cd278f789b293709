"""Checkpoint files read without running code from them.

A pickle can call any function while it is read. Files of torch are therefore read with
``weights_only=True``, and the ``.pkl`` files of detectron2's and Detectron1's model zoos by an
unpickler that knows numpy arrays and plain containers only.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..safe_pickle import UnknownGlobalError, load_arrays
from .cspnet_weights import read_darknet_weights

__all__ = ["UnsafeCheckpointError", "read_checkpoint"]

# Where training scripts keep the weights among the rest of their state; timm prefers the averaged
# ones too.
_WEIGHT_KEYS = ("model", "state_dict_ema", "state_dict", "model_state")


class UnsafeCheckpointError(ValueError):
    """A checkpoint that could run code when it is read."""


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint file by its extension.

    ``.pkl`` (zoos of detectron2 and Detectron1), ``.safetensors``, ``.weights`` (darknet), and
    files of ``torch.save`` under any other name.

    Args:
        path: a local file.

    Returns:
        "model": tensors or arrays by name, empty for a darknet file; "darknet": that file's
        numbers; "matching_heuristics" and "__author__" as detectron2's checkpointer uses them; and
        whatever else the file holds.

    Raises:
        UnsafeCheckpointError: the file holds more than tensors and plain values.
        ValueError: the file does not hold weights by name.
    """
    if path.endswith(".pkl"):
        return _from_zoo(_read_zoo_pickle(path))
    if path.endswith(".weights"):
        return {"model": {}, "darknet": read_darknet_weights(path)}
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return {"model": load_file(path)}
    checkpoint = _unwrap(_read_torch(path), path)
    if path.endswith(".pyth"):  # pycls, whose names want detectron2's heuristics
        checkpoint |= {"__author__": "pycls", "matching_heuristics": True}
    return checkpoint


def _read_torch(path: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))  # one of them: where torch stopped
        raise UnsafeCheckpointError(_refusal(path, wanted[1] if wanted else str(error))) from error


def _refusal(path: str, wanted: str) -> str:
    return (
        f"'{path}' is refused: reading it would call {wanted}, and a checkpoint may hold only "
        "tensors, numbers, strings and plain containers. If you trust the file, read it once with "
        "torch.load(path, weights_only=False) and save its state dict alone, best as .safetensors."
    )


def _unwrap(loaded: Any, path: str) -> dict[str, Any]:
    """Bring a file of torch.save into the form of :func:`read_checkpoint`."""
    if not isinstance(loaded, dict):
        raise ValueError(f"'{path}' holds a {type(loaded).__name__}, not weights by name")
    for key in _WEIGHT_KEYS:
        if isinstance(loaded.get(key), dict):
            return {"model": loaded.pop(key), **loaded}
    if not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(
            f"'{path}' holds {', '.join(map(str, list(loaded)[:5]))}; weights are looked for at "
            f"the top and under {', '.join(_WEIGHT_KEYS)}"
        )
    return {"model": loaded}


def _from_zoo(data: dict[str, Any]) -> dict[str, Any]:
    """Tell detectron2's zoo format from that of Caffe2, as DetectionCheckpointer does."""
    if "model" in data and "__author__" in data:
        return data
    blobs = data.get("blobs", data)
    weights = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _read_zoo_pickle(path: str) -> dict[str, Any]:
    with Path(path).open("rb") as file:
        try:
            data = load_arrays(file)
        except UnknownGlobalError as error:
            raise UnsafeCheckpointError(_refusal(path, str(error))) from error
        except Exception as error:  # a broken pickle raises almost anything
            raise ValueError(f"'{path}' is not a readable pickle: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"'{path}' holds a {type(data).__name__}, not weights by name")
    return data
