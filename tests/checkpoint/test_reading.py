"""Reading files: every format gives the same tensors, and none runs code."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from d2_plugins.checkpoint import UnsafeCheckpointError, read_checkpoint

STATE = {"a.weight": torch.randn(2, 3), "a.bias": torch.arange(3), "b": torch.tensor(2.0)}
ARRAYS = {name: value.numpy() for name, value in STATE.items()}


class _Payload:
    """A pickle of this calls ``Path.touch`` while it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self._path,)


def _assert_state(loaded: dict[str, Tensor | np.ndarray]) -> None:
    assert set(loaded) == set(STATE)
    for name, value in loaded.items():
        assert torch.equal(torch.as_tensor(np.asarray(value)), STATE[name])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: OrderedDict(state),
        lambda state: {"model": state, "iteration": 3},
        lambda state: {"state_dict": state, "epoch": 1, "arch": "resnet50", "best_prec1": Tensor()},
        lambda state: {"state_dict": {"x": torch.zeros(1)}, "state_dict_ema": state},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(wrap: object, zipped: bool, tmp_path: Path) -> None:
    path = str(tmp_path / "weights.pth.tar")
    torch.save(wrap(STATE), path, _use_new_zipfile_serialization=zipped)
    _assert_state(read_checkpoint(path)["model"])


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors")
    _assert_state(read_checkpoint(str(tmp_path / "weights.safetensors"))["model"])


@pytest.mark.parametrize("protocol", range(6))
def test_zoo_pickles(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "R-50.pkl"
    zoo = {"model": ARRAYS, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(zoo, protocol=protocol))
    checkpoint = read_checkpoint(str(path))
    _assert_state(checkpoint["model"])
    assert checkpoint["matching_heuristics"]


@pytest.mark.parametrize("key", [None, "blobs"])
def test_caffe2_pickles(key: str | None, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    blobs = {**ARRAYS, "a_momentum": np.zeros(1)}
    path.write_bytes(pickle.dumps(blobs if key is None else {key: blobs}, protocol=2))
    checkpoint = read_checkpoint(str(path))
    _assert_state(checkpoint["model"])
    assert checkpoint["__author__"] == "Caffe2"


def test_pycls_files_use_matching_heuristics(tmp_path: Path) -> None:
    path = str(tmp_path / "regnet.pyth")
    torch.save({"model_state": STATE, "epoch": 1}, path)
    checkpoint = read_checkpoint(path)
    _assert_state(checkpoint["model"])
    assert checkpoint["matching_heuristics"]


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pth.tar"])
def test_code_in_a_file_is_refused_and_not_run(suffix: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    content = {"model": {"x": _Payload(victim)}, "__author__": "me"}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=suffix == ".pth")
    with pytest.raises(
        UnsafeCheckpointError, match=r"refused.*(Path|touch|getattr).*state dict alone"
    ):
        read_checkpoint(str(path))
    assert not victim.exists()


def test_bytes_may_only_be_spelled_in_latin1(tmp_path: Path) -> None:
    """The one function with a choice that old pickles call."""
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"c_codecs\nencode\n(Vabc\nVrot13\ntR.")
    with pytest.raises(UnsafeCheckpointError, match=r"_codecs.encode to rot13"):
        read_checkpoint(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pkl", b"no pickle", "not a readable pickle"),
        ("a.pkl", pickle.dumps([1]), "holds a list, not weights by name"),
        ("a.weights", b"short", "too short"),
    ],
)
def test_broken_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"epoch": 1, "net": STATE}, "holds epoch, net; weights are looked"),
    ],
)
def test_files_without_weights_are_named(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(str(tmp_path / "a.pth"))
