"""Reading of checkpoint files: no code is run from them, and damage is found and named.

A pickle can call any function while it is read. Files of torch are therefore read with
``weights_only=True``, and the ``.pkl`` files of detectron2's and Detectron1's model zoos by an
unpickler that knows numpy arrays and plain containers only.

Files of ``torch.save`` are zip archives with a CRC-32 of each record. torch writes these checksums
but does not compare them when it loads, so that a changed byte would go unnoticed; here they are
compared before a file is loaded.
"""

import argparse
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
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
        all else that the file holds.

    Raises:
        UnsafeCheckpointError: the file holds more than tensors and plain values.
        ValueError: the file is empty, damaged or of another kind, or does not hold weights by
            name; the message names the file and the cause.
        OSError: the file cannot be read.
    """
    if Path(path).stat().st_size == 0:
        raise ValueError(f"'{path}' is empty")
    if path.endswith(".weights"):
        return {"model": {}, "darknet": read_darknet_weights(path)}
    if path.endswith(".pkl"):
        checkpoint = _from_zoo(_read_zoo_pickle(path), path)
    elif path.endswith(".safetensors"):
        checkpoint = {"model": _read_safetensors(path)}
    else:
        checkpoint = _unwrap(_read_torch(path), path)
    if path.endswith(".pyth"):  # pycls, whose names need detectron2's heuristics
        checkpoint |= {"__author__": "pycls", "matching_heuristics": True}
    _check_entries(checkpoint["model"], path)
    return checkpoint


def _read_safetensors(path: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that this torch does not have
        raise ValueError(f"'{path}' is damaged or not a safetensors file: {error}") from error


def _read_torch(path: str) -> Any:
    _check_kind(path)
    try:
        # timm's checkpoints hold their command line as a Namespace, which is plain attributes.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged files raise almost anything
        text = str(error)
        called = re.search(r"GLOBAL (\S+)|unsupported class|unrecognized function", text)
        if isinstance(error, pickle.UnpicklingError) and called:
            raise UnsafeCheckpointError(_refusal(path, called[1] or text)) from error
        reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        raise ValueError(
            f"'{path}' is damaged or was not written by torch.save: {reason}"
        ) from error


def _check_kind(path: str) -> None:
    """Raise ValueError if a file is damaged or recognizably not one of ``torch.save``."""
    with Path(path).open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK"):
        _check_archive(path)
    elif tarfile.is_tarfile(path):
        raise ValueError(
            f"'{path}' is a tar archive (PyTorch before 0.1.10 saved such files), which cannot be "
            "read without running code from it. Load it once with that version and save it again."
        )
    elif not re.search(rb"[^\t\n\r -~]", head):
        start = head.splitlines()[0][:40].decode("ascii")
        raise ValueError(
            f"'{path}' is a text file that begins with {start!r}, not a checkpoint. It may be a "
            "web page or a pointer that was saved in place of the file."
        )


def _check_archive(path: str) -> None:
    """Compare the checksums of a zip archive, and refuse TorchScript programs.

    Python's zipfile reads the records at the same offsets as torch, so that each byte that
    reaches a tensor is covered; only changes of the padding between records are not found.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            changed = archive.testzip()
    except Exception as error:  # zipfile's own, zlib's, struct's; OSError for wrong offsets
        raise ValueError(f"'{path}' is truncated or damaged: {error}") from error
    if changed is not None:
        raise ValueError(
            f"'{path}' is damaged: the checksum of its record '{changed}' does not match. Use "
            "another checkpoint or a backup of this one."
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(
            f"'{path}' is a TorchScript program, not a checkpoint. Save the state dict of the "
            "model that it was made of."
        )


def _check_entries(weights: dict[Any, Any], path: str) -> None:
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"'{path}' holds an entry named {name!r}; names of weights are text")
        is_array = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
        if not is_array and not isinstance(value, Tensor):
            kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value)
            raise ValueError(f"'{path}' holds '{name}' as {kind}; weights are tensors or arrays")


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


def _from_zoo(data: dict[str, Any], path: str) -> dict[str, Any]:
    """Distinguish detectron2's zoo format from that of Caffe2, as DetectionCheckpointer does."""
    is_detectron2 = "model" in data and "__author__" in data
    blobs = data["model"] if is_detectron2 else data.get("blobs", data)
    if not isinstance(blobs, dict):
        raise ValueError(f"'{path}' holds a {type(blobs).__name__}, not weights by name")
    if is_detectron2:
        return data
    weights = {k: v for k, v in blobs.items() if not str(k).endswith("_momentum")}
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
