"""Damaged, foreign and incomplete checkpoints are refused in one line that names the cause."""

import errno
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from d2_plugins.checkpoint import PluginCheckpointer, UnsafeCheckpointError, read_checkpoint
from d2_plugins.errors import UsageError

STATE = {"weight": torch.randn(40, 3), "bias": torch.randn(40)}


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def archive(*, tar: bool) -> bytes:
    buffer = io.BytesIO()
    if tar:
        with tarfile.open(fileobj=buffer, mode="w") as file:
            file.addfile(tarfile.TarInfo("storages"))
    else:
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("a.txt", "x")
    return buffer.getvalue()


WHOLE = saved({"model": STATE})
SAFE = save(STATE)
HEADER = (2**40).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.pth", b"", "is empty"),
        ("a.safetensors", b"", "is empty"),
        ("a.pkl", b"", "is empty"),
        *[("a.pth", WHOLE[:length], "is truncated or damaged") for length in (4, 100, 900, -1)],
        ("a.pth", b"<!DOCTYPE html>\n<html>", "is a text file that begins with '<!DOCTYPE html>'"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\n", "is a text file"),
        ("a.pth", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is damaged or was not written by"),
        ("a.pth", bytes(range(128, 256)) * 9, "is damaged or was not written by torch.save"),
        ("a.pth", saved(STATE, _use_new_zipfile_serialization=False)[:-40], "is damaged or was"),
        ("a.pth", archive(tar=False), "is damaged or was not written by torch.save"),
        ("a.pth", archive(tar=True), "is a tar archive"),
        ("a.pth", scripted(), "is a TorchScript program"),
        ("a.pth", saved({"model": {3: torch.zeros(1)}}), "an entry named 3"),
        ("a.pth", saved({"model": {"weight": 3}}), "holds 'weight' as <class 'int'>"),
        ("a.safetensors", SAFE[:5], "is damaged or not a safetensors file"),
        ("a.safetensors", SAFE[:-1], "is damaged or not a safetensors file"),
        ("a.safetensors", SAFE[:60], "is damaged or not a safetensors file"),
        ("a.safetensors", HEADER + SAFE[8:], "is damaged or not a safetensors file"),
        ("a.safetensors", SAFE.replace(b"F32", b"F99"), "is damaged or not a safetensors file"),
        ("a.safetensors", b"<html>" * 20, "is damaged or not a safetensors file"),
        ("a.pkl", pickle.dumps({"blobs": 3}), "holds a int, not weights by name"),
        ("a.pkl", pickle.dumps({"x": np.array(["text"])}), "holds 'x' as array of <U4"),
        ("a.pkl", pickle.dumps({"model": {}})[:-3], "is not a readable pickle"),
    ],
)
def test_the_cause_is_named(name: str, content: bytes, cause: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^'.*a\.") as caught:
        read_checkpoint(str(path))
    assert not isinstance(caught.value, UnsafeCheckpointError)
    assert str(caught.value).startswith(f"'{path}' {cause}") or cause in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_changed_byte_is_refused_or_has_no_effect(tmp_path: Path) -> None:
    """The checksums cover every byte except the padding between the records."""
    model = nn.Linear(3, 40)
    PluginCheckpointer(model, str(tmp_path)).save("model", iteration=7)
    path = tmp_path / "model.pth"
    whole = path.read_bytes()
    expected = read_checkpoint(str(path))
    messages = []
    for position in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        try:
            loaded = read_checkpoint(str(path))
        except ValueError as error:
            messages.append(str(error))
            continue
        assert loaded["iteration"] == 7
        assert all(torch.equal(loaded["model"][k], v) for k, v in expected["model"].items())
    assert len(messages) > 150
    assert all(message.startswith(f"'{path}' is ") for message in messages)

    at = whole.index(model.weight.detach().numpy().tobytes()) + 100
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert torch.load(path, weights_only=True)  # torch does not notice
    with pytest.raises(ValueError, match=r"the checksum of its record 'archive/data/\d' does not"):
        read_checkpoint(str(path))


class Counter:
    """Training state of a run."""

    def __init__(self) -> None:
        self.iteration = 0

    def state_dict(self) -> dict[str, int]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.iteration = state["iteration"] + 0


@pytest.fixture
def run(tmp_path: Path) -> Callable[[], PluginCheckpointer]:
    def build() -> PluginCheckpointer:
        return PluginCheckpointer(nn.Linear(3, 40), str(tmp_path), trainer=Counter())

    build().save("model_0000004", iteration=4)
    return build


def test_resuming_without_training_state_is_refused(
    run: Callable[[], PluginCheckpointer], tmp_path: Path
) -> None:
    torch.save({"model": STATE}, tmp_path / "model_0000004.pth")
    with pytest.raises(UsageError, match=r"^--resume: .* without training state \(no 'train"):
        run().resume_or_load("")
    # An evaluation with --resume has no training state to restore.
    PluginCheckpointer(nn.Linear(3, 40), str(tmp_path)).resume_or_load("", resume=True)
    run().resume_or_load(str(tmp_path / "model_0000004.pth"), resume=False)


@pytest.mark.parametrize("state", [{"iteration": "x"}, {}, [1], None])
def test_a_training_state_that_does_not_fit_is_named(
    state: object, run: Callable[[], PluginCheckpointer], tmp_path: Path
) -> None:
    torch.save({"model": STATE, "trainer": state}, tmp_path / "model_0000004.pth")
    with pytest.raises(UsageError, match=r"^--resume: the training state in .*0004.pth' does not"):
        run().resume_or_load("")


@pytest.mark.parametrize("name", ["model_0000099.pth", "", "../other.pth"])
def test_a_missing_last_checkpoint_is_named_as_that(
    name: str, run: Callable[[], PluginCheckpointer], tmp_path: Path
) -> None:
    (tmp_path / "last_checkpoint").write_text(name)
    with pytest.raises(UsageError, match=r"^--resume: '.*last_checkpoint' names '.*no file"):
        run().resume_or_load("")


def test_errors_name_the_config_key_of_the_weights(run: Callable[[], PluginCheckpointer]) -> None:
    with pytest.raises(UsageError, match=r"^train.init_checkpoint: there is no file 'none.pth'"):
        run().resume_or_load("none.pth", resume=False, key="train.init_checkpoint")


def test_left_overs_of_killed_saves_are_removed_at_the_next_save(
    run: Callable[[], PluginCheckpointer], tmp_path: Path
) -> None:
    for name in (".model_0000002.pth.ab12.part", ".last_checkpoint.x1.part"):
        (tmp_path / name).write_bytes(b"half")
    others = [tmp_path / ".notes.part", tmp_path / "model.pth.part"]
    for other in others:
        other.write_bytes(b"not ours")
    run().save("model_0000005", iteration=5)
    assert {path.name for path in tmp_path.iterdir()} == {
        "last_checkpoint",
        "model_0000004.pth",
        "model_0000005.pth",
        *(other.name for other in others),
    }


@pytest.mark.parametrize("hidden", [False, True])
def test_a_full_disk_is_named_and_keeps_the_last_checkpoint(
    hidden: bool,
    run: Callable[[], PluginCheckpointer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(data: object, file: Any) -> None:
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            if not hidden:
                raise
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")  # noqa: B904

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: '.*0009.pth'"):
        run().save("model_0000009", iteration=9)
    assert {path.name for path in tmp_path.iterdir()} == {"last_checkpoint", "model_0000004.pth"}
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"


def test_safetensors_of_the_same_weights_load(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    assert set(read_checkpoint(str(tmp_path / "a.safetensors"))["model"]) == set(STATE)
