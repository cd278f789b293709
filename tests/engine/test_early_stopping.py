"""Early stopping: when a run ends, what it leaves, and where an interrupted one ends."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.engine import HookBase

from d2_plugins.config_schema import check_config
from d2_plugins.engine import Trainer
from d2_plugins.engine.hooks import EarlyStopping, StopTraining
from d2_plugins.errors import UsageError
from tests.support.toy import toy_cfg
from tests.support.training import train, weights

STOP = ["TEST.BEST_METRIC", "bbox/AP", "TEST.EVAL_PERIOD", 2, "TEST.EARLY_STOP_PATIENCE", 2]
# AP after 2, 4, ... iterations. With a patience of 2, the run ends after 8.
VALUES = [1.0, 3.0, 3.0, float("nan"), 4.0, 5.0, 6.0]

Evaluations = list[float]


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> Iterator[Evaluations]:
    """The values that evaluations have given so far; each takes the next of VALUES."""
    given: Evaluations = []

    def test(*_: Any) -> dict[str, Any]:
        given.append(VALUES[len(given)])
        return {"bbox": {"AP": given[-1]}}

    monkeypatch.setattr(Trainer, "test", classmethod(test))
    return given


@pytest.fixture
def opts(toy_data: list[Any]) -> list[Any]:
    return [*toy_data, *STOP, "SOLVER.MAX_ITER", 14, "SOLVER.CHECKPOINT_PERIOD", 2]


def last_checkpoint(folder: Path) -> dict[str, Any]:
    name = (folder / "last_checkpoint").read_text()
    assert name == "model_final.pth"
    return torch.load(folder / name, weights_only=True)


def test_run_stops_and_leaves_what_a_run_of_that_length_leaves(
    opts: list[Any], tmp_path: Path, evaluations: Evaluations, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "d2_plugins"):
        stopped = train(tmp_path / "stopped", opts)
    assert (
        "Stopped after 8 of 14 iterations: bbox/AP was not better than 3.000 (iteration 3) in 2 "
        "evaluations in a row; TEST.EARLY_STOP_PATIENCE is 2" in caplog.text
    )
    assert len(evaluations) == 4  # the last evaluation is not repeated
    lines = (tmp_path / "stopped" / "metrics.json").read_text().splitlines()
    written = {row["iteration"]: row for row in map(json.loads, lines)}
    assert max(written) == 7
    assert "total_loss" in written[7]
    assert "bbox/AP" in written[7]
    best = torch.load(tmp_path / "stopped" / "model_best.pth", weights_only=True)
    assert best["iteration"] == 3
    state = last_checkpoint(tmp_path / "stopped")
    assert state["iteration"] == state["trainer"]["iteration"] == 7

    evaluations.clear()
    whole = train(tmp_path / "whole", [*opts, "SOLVER.MAX_ITER", 8, *STOP[:-1], 0])
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(stopped)[name]), name
        assert torch.equal(value, state["model"][name]), name


class Interruption(HookBase):
    """Ctrl-C before an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


def test_interrupted_run_stops_where_a_whole_one_does(
    opts: list[Any], tmp_path: Path, evaluations: Evaluations
) -> None:
    trainer = Trainer(toy_cfg(tmp_path, opts))
    trainer.register_hooks([Interruption(6)])
    trainer.resume_or_load(resume=False)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    # The checkpoint of iteration 5 was written before its evaluation, which was not better.
    assert len(evaluations) == 3
    resumed = train(tmp_path, opts)
    assert (resumed.start_iter, resumed.max_iter, len(evaluations)) == (6, 8, 4)


def test_stopped_run_goes_on_only_with_more_patience(
    opts: list[Any], tmp_path: Path, evaluations: Evaluations
) -> None:
    train(tmp_path, opts)
    again = train(tmp_path, opts)
    assert (again.start_iter, again.max_iter, len(evaluations)) == (8, 8, 5)
    assert again._last_eval_results == {"bbox": {"AP": 4.0}}
    # That evaluation was of the same weights: it does not count.
    state = last_checkpoint(tmp_path)["trainer"]["hooks"]["BestCheckpoint"]
    assert (state["best_value"], state["not_better"]) == (3.0, 2)
    patient = train(tmp_path, [*opts, "TEST.EARLY_STOP_PATIENCE", 3, "SOLVER.MAX_ITER", 12])
    assert (patient.start_iter, patient.max_iter) == (8, 12)
    assert last_checkpoint(tmp_path)["trainer"]["hooks"]["BestCheckpoint"]["best_value"] == 6.0


@pytest.mark.parametrize(("counts", "stops"), [([2, 0], True), ([1, 0], False)])
def test_all_processes_stop_with_the_main_one(
    counts: list[int], stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second of two processes, which has no results of its own."""
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda own: [*counts[:1], own])
    saved: list[str] = []
    save: Callable[..., None] = lambda name, **_: saved.append(name)  # noqa: E731
    hook = EarlyStopping(2, 5, SimpleNamespace(save=save), None)  # type: ignore[arg-type]
    hook.trainer = SimpleNamespace(iter=4, max_iter=20)  # type: ignore[assignment]
    hook.after_step()
    assert hook.trainer.max_iter == (5 if stops else 20)
    assert saved == ["model_final"] * stops
    hook.trainer.iter = 5
    if stops:
        with pytest.raises(StopTraining):
            hook.before_step()
    else:
        hook.before_step()


@pytest.mark.parametrize(
    ("missing", "allowed"),
    [(["TEST.BEST_METRIC", ""], "bbox/AP"), (["TEST.EVAL_PERIOD", 0], "at least 1")],
)
def test_patience_needs_a_metric_and_evaluations(
    missing: list[Any], allowed: str, tmp_path: Path
) -> None:
    check_config(toy_cfg(tmp_path, STOP))
    with pytest.raises(UsageError, match=rf"^{missing[0]} is .*EARLY_STOP_PATIENCE 2: .*{allowed}"):
        check_config(toy_cfg(tmp_path, [*STOP, *missing]))
