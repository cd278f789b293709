"""Train the rows of a comparison, and keep the results of finished runs."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from d2_plugins import get_cfg, model_zoo
from d2_plugins.config import config_values
from d2_plugins.files import atomic_write_json

from .trained_tables import Results, Row, Table

__all__ = ["TableRun", "finished_runs", "missing_runs", "runs_of", "train_table"]


@dataclass(frozen=True)
class TableRun:
    """One row with one seed."""

    table: Table
    row: Row
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder and record."""
        return f"{_slug(self.row.label)}_seed{self.seed}"

    @property
    def opts(self) -> tuple[str, ...]:
        """KEY VALUE pairs, except for the output folder."""
        return (*self.table.options(self.row), "SEED", str(self.seed))

    @property
    def source(self) -> "TableRun":
        """The run whose weights are evaluated."""
        assert self.row.weights_of is not None
        return TableRun(self.table, self.table.named(self.row.weights_of), self.seed)

    def identity(self) -> dict[str, object]:
        """Return everything that the results depend on, including the content of the config."""
        source = self.source.identity() if self.row.weights_of else None
        config = {"config": self.row.config, "opts": list(self.opts), "settings": _digest(self)}
        return config | ({"weights": source["settings"]} if source else {})


def runs_of(table: Table) -> list[TableRun]:
    """Return the runs of a table, row by row."""
    return [TableRun(table, row, seed) for row in table.rows for seed in table.seeds]


def missing_runs(table: Table, records: Path) -> list[str]:
    """Return the names of the runs of ``table`` that have no record yet."""
    return [run.name for run in runs_of(table) if _read_record(run, records) is None]


def train_table(
    table: Table, folder: Path, records: Path, train_command: Sequence[str], *, jobs: int = 1
) -> Results:
    """Train every row with every seed; runs with a record are not repeated.

    Args:
        table: what to train.
        folder: parent of the runs' folders, which hold logs and checkpoints.
        records: folder of the results, one JSON file per run; small enough to be committed.
        train_command: the training command, to which arguments are appended.
        jobs: number of runs at a time; they share the cores this process may use.

    Returns:
        By label, for each seed the metrics of its last evaluation and "minutes" (wall clock).

    Raises:
        RuntimeError: a run failed; the message names its log.
    """
    threads = max(len(os.sched_getaffinity(0)) // jobs, 1)
    futures: dict[str, Future[dict[str, float]]] = {}

    def finish(run: TableRun) -> dict[str, float]:
        if run.row.weights_of is not None:
            futures[run.source.name].result()
        return _finish(run, folder, records, train_command, threads)

    results: Results = {row.label: [] for row in table.rows}
    with ThreadPoolExecutor(jobs) as pool:
        # Seed by seed, so that an interrupted table has whole seeds of all rows. Runs start in this
        # order, so none waits for the weights of one that cannot start.
        for run in sorted(
            runs_of(table), key=lambda run: (run.seed, run.row.weights_of is not None)
        ):
            futures[run.name] = pool.submit(finish, run)
        for run in runs_of(table):
            results[run.row.label].append(futures[run.name].result())
    return results


def finished_runs(table: Table, records: Path) -> Results:
    """Return the results that :func:`train_table` would not train again."""
    results: Results = {row.label: [] for row in table.rows}
    for run in runs_of(table):
        metrics = _read_record(run, records)
        if metrics is not None:
            results[run.row.label].append(metrics)
    return results


def _finish(
    run: TableRun, folder: Path, records: Path, train_command: Sequence[str], threads: int
) -> dict[str, float]:
    """Return the metrics of a run, from its record or from the run itself."""
    known = _read_record(run, records)
    if known is not None:
        return known
    start = time.perf_counter()
    if run.row.weights_of is None:
        metrics = _train(run, folder / run.name, train_command, threads)
    else:
        metrics = _evaluate(run, folder / run.source.name, threads)
    metrics["minutes"] = (time.perf_counter() - start) / 60
    atomic_write_json(records / f"{run.name}.json", {**run.identity(), "metrics": metrics})
    return metrics


def _read_record(run: TableRun, records: Path) -> dict[str, float] | None:
    file = records / f"{run.name}.json"
    if not file.exists():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    metrics = record.pop("metrics")
    return metrics if record == run.identity() else None


def _train(
    run: TableRun, folder: Path, train_command: Sequence[str], threads: int
) -> dict[str, float]:
    words = ["--config-file", run.row.config, "--num-gpus", "0", "OUTPUT_DIR", str(folder)]
    _call([*train_command, *words, *run.opts], folder / "output.txt", threads)
    lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
    # The last line is the final evaluation.
    return {name: value for name, value in json.loads(lines[-1]).items() if "/" in name}


def _evaluate(run: TableRun, folder: Path, threads: int) -> dict[str, float]:
    """Evaluate the weights in ``folder`` with the options of ``run``."""
    result = folder / f"{run.name}_metrics.json"
    script = Path(__file__).with_name("evaluate_run.py")
    weights = str(folder / "model_final.pth")
    words = [run.row.config, str(result), *run.opts, "MODEL.WEIGHTS", weights]
    _call([sys.executable, str(script), *words], folder / f"{run.name}.txt", threads)
    return json.loads(result.read_text(encoding="utf-8"))


def _call(command: Sequence[str], log: Path, threads: int) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        status = subprocess.run(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            check=False,
        ).returncode
    if status:
        raise RuntimeError(f"the run ended with status {status}: see {log}")


def _digest(run: TableRun) -> str:
    """Hash of all settings that differ from the defaults.

    A key that a later version adds, off by default, leaves it as it is.
    """
    cfg = model_zoo.get_config(run.row.config)
    cfg.merge_from_list(list(run.opts))
    defaults, values = (
        {name: repr(value) for name, value in config_values(node)} for node in (get_cfg(), cfg)
    )
    changed = {name: value for name, value in values.items() if defaults.get(name) != value}
    changed.pop("OUTPUT_DIR", None)
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:16]


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")
