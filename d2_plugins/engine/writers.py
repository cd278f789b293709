"""Writers of metrics to tracking services, whose packages are imported when one is asked for."""

import contextlib
import importlib
import json
import logging
import math
import os
import re
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..config import config_values
from ..errors import UsageError
from ..files import atomic_write_json

__all__ = ["MLflowWriter", "RunWriter", "WandbWriter", "build_run_writers", "forget_runs"]

logger = logging.getLogger(__name__)

_RUNS_FILE = "tracked_runs.json"
_WINDOW = 20  # iterations over which detectron2's writers smooth losses
# Limits of MLflow: parameters per request, and characters of a value.
_MAX_PARAMS, _MAX_CHARACTERS = 100, 500
_BAD_CHARACTER = re.compile(r"[^\w\-. :/]")


class RunWriter(EventWriter):
    """Writes the scalars of a training, and its config, to one run of a tracking service.

    The run is opened at the first write. A resumed training continues its run, whose id is in
    ``OUTPUT_DIR``. A failure later on, such as a lost connection, is logged, and the training goes
    on without this writer.

    Attributes:
        service: name of the service, of its package and of the extra of this package.
    """

    service: str

    def __init__(self, cfg: CfgNode) -> None:
        """Import the package of the service.

        Args:
            cfg: config of the run.

        Raises:
            UsageError: the package is not installed.
        """
        try:
            self._package: Any = importlib.import_module(self.service)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"OUTPUT_WRITERS has {self.service}, which is not installed: "
                f"pip install 'd2_plugins[{self.service}]'"
            ) from error
        self._folder = Path(cfg.OUTPUT_DIR)
        self._config: dict[str, Any] = yaml.safe_load(cfg.dump())
        self._is_open = self._has_failed = False
        self._last_iter = -1

    def write(self) -> None:
        """Write the scalars that are new since the last call, losses smoothed by their median.

        Raises:
            UsageError: the run cannot be opened, for example because nobody is logged in.
        """
        if self._has_failed:
            return
        if not self._is_open:
            self._open()
        latest = get_event_storage().latest_with_smoothing_hint(_WINDOW)
        rows: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in latest.items():
            if iteration > self._last_iter:
                rows.setdefault(iteration, {})[name] = value
        self._last_iter = max(rows, default=self._last_iter)
        with self._without_failing():
            for iteration in sorted(rows):
                self.log(rows[iteration], iteration)

    def close(self) -> None:
        """Close the run."""
        if self._is_open and not self._has_failed:
            with self._without_failing():
                self.finish()

    def _open(self) -> None:
        path = self._folder / _RUNS_FILE
        runs = json.loads(path.read_text()) if path.is_file() else {}
        try:
            runs[self.service] = self.open(runs.get(self.service))
        except Exception as error:  # each package has exceptions of its own
            raise UsageError(f"OUTPUT_WRITERS: {self.service} opens no run: {error}") from error
        self._is_open = True
        atomic_write_json(path, runs)

    @contextlib.contextmanager
    def _without_failing(self) -> Iterator[None]:
        try:
            yield
        except Exception:  # never lose a training because a service does not answer
            self._has_failed = True
            logger.exception("%s failed; the training goes on without it", self.service)

    @abstractmethod
    def open(self, run_id: str | None) -> str:
        """Open the run ``run_id``, or a new one for None; return its id."""

    @abstractmethod
    def log(self, row: dict[str, float], iteration: int) -> None:
        """Write the scalars of an iteration."""

    @abstractmethod
    def finish(self) -> None:
        """Close the run."""


class WandbWriter(RunWriter):
    """Writes to Weights & Biases.

    Its environment variables apply: ``WANDB_PROJECT``, ``WANDB_MODE=offline``, ... A run is named
    after ``OUTPUT_DIR`` unless ``WANDB_NAME`` is set.
    """

    service = "wandb"

    def open(self, run_id: str | None) -> str:
        """Open the run ``run_id``, or a new one for None; return its id."""
        name = None if "WANDB_NAME" in os.environ else self._folder.resolve().name
        self._run = self._package.init(
            id=run_id, resume="allow", name=name, dir=str(self._folder), config=self._config
        )
        # Not wandb's own step, which must not decrease: a resumed run repeats iterations.
        self._run.define_metric("*", step_metric="iteration")
        return str(self._run.id)

    def log(self, row: dict[str, float], iteration: int) -> None:
        """Write the scalars of an iteration."""
        self._run.log({**row, "iteration": iteration})

    def finish(self) -> None:
        """Close the run."""
        self._run.finish()


class MLflowWriter(RunWriter):
    """Writes to MLflow.

    Its environment variables apply: ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``, ... A run
    is named after ``OUTPUT_DIR`` unless ``MLFLOW_RUN_NAME`` is set.
    """

    service = "mlflow"

    def open(self, run_id: str | None) -> str:
        """Open the run ``run_id``, or a new one for None; return its id."""
        name = None if "MLFLOW_RUN_NAME" in os.environ else self._folder.resolve().name
        run = self._package.start_run(run_id=run_id, run_name=name)
        if run_id is None:  # the parameters of a run cannot be changed
            params = [(key, str(v)[:_MAX_CHARACTERS]) for key, v in config_values(self._config)]
            for start in range(0, len(params), _MAX_PARAMS):
                self._package.log_params(dict(params[start : start + _MAX_PARAMS]))
        return str(run.info.run_id)

    def log(self, row: dict[str, float], iteration: int) -> None:
        """Write the finite scalars of an iteration, under names that MLflow allows."""
        finite = {
            _BAD_CHARACTER.sub("_", name): value
            for name, value in row.items()
            if math.isfinite(value)
        }
        if finite:
            self._package.log_metrics(finite, step=iteration)

    def finish(self) -> None:
        """Close the run."""
        self._package.end_run()


_WRITERS: dict[str, type[RunWriter]] = {c.service: c for c in (WandbWriter, MLflowWriter)}


def build_run_writers(cfg: CfgNode) -> list[RunWriter]:
    """Return the writers that ``OUTPUT_WRITERS`` names.

    Raises:
        UsageError: the package of one is not installed.
    """
    return [_WRITERS[name](cfg) for name in cfg.OUTPUT_WRITERS]


def forget_runs(output_dir: str) -> None:
    """Let the next training in a folder open new runs."""
    (Path(output_dir) / _RUNS_FILE).unlink(missing_ok=True)
