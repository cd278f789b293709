"""Saving: atomic, readable again without running code, and compatible with detectron2's hooks."""

import os
import signal
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn

from d2_plugins.checkpoint import PluginCheckpointer
from d2_plugins.checkpoint.plain_state import to_plain


def _killed_within(target: str, action: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``action`` in a child process that is killed in the middle of ``target``."""

    def die(*args: object) -> None:
        if hasattr(args[-1], "write"):  # leave half a file behind
            args[-1].write(b"half a checkpoint")
            args[-1].flush()
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(target, die)
        try:
            action()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


@pytest.mark.parametrize(
    "moment",
    [
        "torch.save",
        "os.replace",
        f"{PluginCheckpointer.__module__}.PluginCheckpointer.tag_last_checkpoint",
    ],
)
def test_a_killed_save_leaves_the_last_checkpoint(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(3, 2)
    checkpointer = PluginCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000009", iteration=9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    nn.init.zeros_(model.weight)
    _killed_within(moment, lambda: checkpointer.save("model_0000019", iteration=19), monkeypatch)

    # Under a checkpoint's name there is nothing but whole checkpoints.
    for path in checkpointer.get_all_checkpoint_files():
        torch.load(path, weights_only=True)
    assert checkpointer.resume_or_load("")["iteration"] == 9
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    # The next save takes the place of the one that failed, and leaves nothing of it behind.
    checkpointer.save("model_0000019", iteration=19)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["last_checkpoint", "model_0000009.pth", "model_0000019.pth"]
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000019.pth")


def test_training_state_comes_back(tmp_path: Path) -> None:
    def build() -> tuple:
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        multiplier = MultiStepParamScheduler([1.0, 0.1], milestones=[2], num_updates=4)
        scheduler = LRMultiplier(optimizer, multiplier, max_iter=4)
        return model, optimizer, scheduler

    model, optimizer, scheduler = build()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
    saver = PluginCheckpointer(model, str(tmp_path), optimizer=optimizer, scheduler=scheduler)
    rng = torch.get_rng_state()
    saver.save("model_0000002", iteration=2, seed=7, rng=rng, best=np.float64(0.5))

    other, other_optimizer, other_scheduler = build()
    loader = PluginCheckpointer(
        other, str(tmp_path), optimizer=other_optimizer, scheduler=other_scheduler
    )
    extra = loader.resume_or_load("", resume=True)
    assert extra["iteration"] == 2
    assert extra["seed"] == 7
    assert extra["best"] == 0.5
    assert torch.equal(extra["rng"], rng)
    assert torch.equal(other.weight, model.weight)
    assert other_scheduler.state_dict() == scheduler.state_dict()
    assert other_optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    moment = optimizer.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(other_optimizer.state_dict()["state"][0]["exp_avg"], moment)
    # detectron2's own checkpointer reads the file too.
    assert DetectionCheckpointer(build()[0]).load(str(tmp_path / "model_0000002.pth"))["seed"] == 7


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    checkpointer = PluginCheckpointer(nn.Linear(3, 2), str(tmp_path))
    with pytest.raises(TypeError, match=r"the checkpoint\['hooks'\]\[0\]\['path'\] is a pathlib"):
        checkpointer.save("model", hooks=[{"path": Path("x")}])
    assert not list(tmp_path.iterdir())


def test_plain_state_keeps_its_values_and_types() -> None:
    state = {
        "steps": Counter({3: 1}),
        "order": OrderedDict(b=1, a=(1, [2.0, {"c"}])),
        1: torch.arange(3),
        "number": np.int64(4),
        "size": torch.Size([1, 2]),
        "nothing": None,
    }
    plain = to_plain(state, "state")
    assert plain.pop(1) is state.pop(1)
    assert plain == state
    assert [type(v) for v in plain.values()] == [Counter, OrderedDict, int, torch.Size, type(None)]


def test_periodic_checkpoints_are_rotated_as_by_detectron2(tmp_path: Path) -> None:
    checkpointer = PluginCheckpointer(nn.Linear(3, 2), str(tmp_path))
    assert not checkpointer.has_checkpoint()
    periodic = PeriodicCheckpointer(checkpointer, 2, max_iter=6, max_to_keep=1)
    for iteration in range(6):
        periodic.step(iteration)
    assert checkpointer.has_checkpoint()
    assert {path.name for path in tmp_path.iterdir()} == {
        "last_checkpoint",
        "model_0000005.pth",
        "model_final.pth",
    }
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_final.pth")


def test_only_the_process_that_saves_writes(tmp_path: Path) -> None:
    PluginCheckpointer(nn.Linear(3, 2), str(tmp_path), save_to_disk=False).save("model")
    PluginCheckpointer(nn.Linear(3, 2)).save("model")
    assert not list(tmp_path.iterdir())
