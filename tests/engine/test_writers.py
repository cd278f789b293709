"""Writers to tracking services, with stand-ins for their packages that record the calls."""

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from detectron2.utils.events import EventStorage

from d2_plugins.engine import Trainer
from d2_plugins.engine.writers import (
    MLflowWriter,
    RunWriter,
    WandbWriter,
    build_run_writers,
)
from d2_plugins.errors import UsageError
from tests.support.toy import toy_cfg
from tests.support.training import train

EVALUATE = ["TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 2]


class Wandb(ModuleType):
    """As much of wandb as is used; rows by run id."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.opened: list[dict[str, Any]] = []
        self.rows: dict[str, list[dict[str, float]]] = {}
        self.finished: list[str] = []
        self.step_metrics: list[tuple[str, str]] = []
        self.broken = False

    def init(self, **settings: Any) -> Any:
        self.opened.append(settings)
        run_id = settings["id"] or f"run{len(self.rows)}"
        rows = self.rows.setdefault(run_id, [])

        def log(row: dict[str, float]) -> None:
            if self.broken:
                raise ConnectionError("gone")
            rows.append(row)

        return SimpleNamespace(
            id=run_id,
            log=log,
            finish=lambda: self.finished.append(run_id),
            define_metric=lambda name, step_metric: self.step_metrics.append((name, step_metric)),
        )


class MLflow(ModuleType):
    """As much of mlflow as is used, with its checks."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.opened: list[tuple[str | None, str | None]] = []
        self.params: dict[str, str] = {}
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.ended = 0

    def start_run(self, run_id: str | None, run_name: str | None) -> Any:
        self.opened.append((run_id, run_name))
        if run_id is None:
            self.params = {}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "m0"))

    def log_params(self, params: dict[str, str]) -> None:
        assert len(params) <= 100
        assert not set(params) & set(self.params), "parameters of a run cannot be changed"
        assert all(len(value) <= 500 for value in params.values())
        self.params |= params

    def log_metrics(self, row: dict[str, float], step: int) -> None:
        for name, value in row.items():
            assert all(c.isalnum() or c in "_-. :/" for c in name), name
            assert math.isfinite(value)
        self.rows.append((step, row))

    def end_run(self) -> None:
        self.ended += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    stand_in = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.delenv("WANDB_NAME", raising=False)
    return stand_in


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> MLflow:
    stand_in = MLflow()
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)
    monkeypatch.delenv("MLFLOW_RUN_NAME", raising=False)
    return stand_in


def test_training_writes_one_run_to_each_service_across_a_resume(
    toy_data: list[Any], tmp_path: Path, wandb: Wandb, mlflow: MLflow
) -> None:
    opts = [*toy_data, *EVALUATE, "OUTPUT_WRITERS", ["wandb", "mlflow"], "SOLVER.MAX_ITER", 4]
    folder = tmp_path / "own"
    train(folder, opts, stop_after=2)
    train(folder, opts)
    assert [s["id"] for s in wandb.opened] == [None, "run0"]
    assert wandb.finished == ["run0", "run0"]
    first = wandb.opened[0]
    assert (first["name"], first["resume"], first["dir"]) == ("own", "allow", str(folder))
    assert first["config"]["SOLVER"]["MAX_ITER"] == 4
    assert wandb.step_metrics[0] == ("*", "iteration")
    rows = {row["iteration"]: row for row in wandb.rows["run0"]}
    assert {"total_loss", "lr", "time"} - set(rows[0]) == {"time"}
    assert "total_loss" in rows[3]
    assert "bbox/AP" in rows[4]
    assert mlflow.opened == [(None, "own"), ("m0", "own")]
    assert mlflow.params["SOLVER.MAX_ITER"] == "4"
    assert [step for step, row in mlflow.rows if "bbox/AP" in row] == [2, 4]
    assert mlflow.ended == 2
    # A new training in the folder is a new run.
    trainer = Trainer(toy_cfg(folder, [*opts, "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ()]))
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert wandb.opened[-1]["id"] is None


def test_names_and_values_are_made_those_that_mlflow_takes(tmp_path: Path, mlflow: MLflow) -> None:
    cfg = toy_cfg(tmp_path)
    cfg.MODEL.WEIGHTS = "w" * 1000
    writer = MLflowWriter(cfg)
    with EventStorage() as storage:
        storage.put_scalar("bbox/AP-käse (alt), 50%", 1.0)
        storage.put_scalar("bbox/APl", math.nan)
        writer.write()
        writer.write()  # nothing is new
    assert mlflow.rows == [(0, {"bbox/AP-käse _alt__ 50_": 1.0})]
    assert mlflow.params["MODEL.WEIGHTS"] == "w" * 500


@pytest.mark.parametrize("writer", [WandbWriter, MLflowWriter])
def test_missing_package_is_named_with_its_extra(
    writer: type[RunWriter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = writer.service
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    cfg = toy_cfg(tmp_path, ["OUTPUT_WRITERS", [name]])
    with pytest.raises(UsageError, match=rf"^OUTPUT_WRITERS has {name}, .*d2_plugins\[{name}\]'$"):
        build_run_writers(cfg)


def test_run_that_cannot_be_opened_is_told_in_a_line(tmp_path: Path, wandb: Wandb) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("no API key")

    wandb.init = init  # type: ignore[method-assign]
    with EventStorage(), pytest.raises(UsageError, match="wandb opens no run: no API key"):
        WandbWriter(toy_cfg(tmp_path)).write()


def test_lost_connection_does_not_end_the_training(
    tmp_path: Path, wandb: Wandb, caplog: pytest.LogCaptureFixture
) -> None:
    writer = WandbWriter(toy_cfg(tmp_path))
    with EventStorage() as storage:
        for storage.iter in range(4):
            wandb.broken = storage.iter > 0
            storage.put_scalar("total_loss", 1.0)
            writer.write()
        writer.close()
    assert [row["iteration"] for row in wandb.rows["run0"]] == [0]
    assert caplog.text.count("wandb failed; the training goes on without it") == 1
