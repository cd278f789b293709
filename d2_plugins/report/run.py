"""The files of a run, read from its output folder."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO

from ..config import get_cfg
from ..evaluation import FastCOCOEvaluator
from .record import read_sessions

__all__ = ["MissingError", "Predictions", "Results", "Run", "load_predictions", "load_run"]

# Task -> metric -> value, as an evaluator returns them.
Results = dict[str, dict[str, float]]

_TASK = re.compile(r"(bbox|segm|keypoints|box_proposals|sem_seg|panoptic_seg)(_.+)?")


class MissingError(Exception):
    """A part of the report cannot be made; the message says what is missing."""


@dataclass(frozen=True)
class Run:
    """A run, finished or not.

    Attributes:
        folder: output folder.
        cfg: config; None if unknown.
        metrics: rows of ``metrics.json``, in the order of their iterations.
        results: results of the last evaluation, by dataset.
        sessions: how it was trained, see :mod:`.record`; empty if that was not recorded.
    """

    folder: Path
    cfg: CfgNode | None
    metrics: list[dict[str, Any]]
    results: dict[str, Results]
    sessions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def config_file(self) -> str:
        """The ``--config-file`` of the last session; "" if it was not recorded."""
        return str(self.sessions[-1].get("config_file") or "") if self.sessions else ""

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """The datasets that the run is evaluated on."""
        return tuple(self.cfg.DATASETS.TEST) if self.cfg is not None else ()

    def results_of(self, checkpoint: str) -> dict[str, Results]:
        """Return the results of a checkpoint, by dataset; empty if it was not evaluated.

        Args:
            checkpoint: file name, for example "model_best.pth" or "model_0000999.pth".
        """
        if checkpoint == "model_final.pth":
            return self.results
        if checkpoint == "model_best.pth":
            metric = self.cfg.TEST.BEST_METRIC if self.cfg is not None else ""
            evaluated = zip(*self.series(metric), strict=True)
            values = [(value, -iteration) for iteration, value in evaluated if value == value]
            iteration = -max(values)[1] if values else None
        else:
            number = re.fullmatch(r"model_(\d+)\.pth", checkpoint)
            iteration = int(number[1]) if number else None
        rows = [row for row in self.metrics if row["iteration"] == iteration]
        found = _by_dataset(_last_evaluation(rows, self.dataset_names), self.dataset_names)
        return {name: tasks for name, tasks in found.items() if tasks}

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return iterations and values of a metric; empty if it was never written."""
        rows = [row for row in self.metrics if isinstance(row.get(key), int | float)]
        return [row["iteration"] for row in rows], [row[key] for row in rows]

    def evaluated_series(self, task: str, metric: str) -> Iterator[tuple[str, list[int], list]]:
        """Yield dataset, iterations and values of a metric for each dataset that has it."""
        prefixed = len(self.dataset_names) > 1
        for name in self.dataset_names or ("",):
            key = f"{name}/{task}/{metric}" if prefixed else f"{task}/{metric}"
            iterations, values = self.series(key)
            if values:
                yield name, iterations, values


def load_run(
    output_dir: str | Path, cfg: CfgNode | None = None, results: Mapping[str, Any] | None = None
) -> Run:
    """Read the files in ``output_dir``.

    Args:
        output_dir: output folder of the run.
        cfg: config of the run; None reads ``config.yaml``.
        results: as ``Trainer.test`` returns them; None reads ``results.json``, or else
            the last evaluation of ``metrics.json``.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} to report on")
    cfg = cfg if cfg is not None else _read_config(folder / "config.yaml")
    names = tuple(cfg.DATASETS.TEST) if cfg is not None else ()
    metrics = _read_metrics(folder / "metrics.json")
    if results is None and (folder / "results.json").is_file():
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if results is None:
        results = _last_evaluation(metrics, names)
    return Run(folder, cfg, metrics, _by_dataset(results, names), read_sessions(folder))


def _read_config(path: Path) -> CfgNode | None:
    if not path.is_file():
        return None
    cfg = get_cfg()
    cfg.set_new_allowed(True)  # tolerate keys of other versions and plugins
    cfg.merge_from_file(str(path), allow_unsafe=False)
    return cfg


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows by iteration; of rows with the same iteration, later values win."""
    if not path.is_file():
        return []
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed
            continue
        if isinstance(row, dict) and "iteration" in row:
            rows.setdefault(row["iteration"], {}).update(row)
    return [rows[iteration] for iteration in sorted(rows)]


def _last_evaluation(metrics: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    """Undo detectron2's flattening (``[dataset/]task/metric``) of the last values."""
    last: dict[str, Any] = {}
    for row in metrics:
        last.update(row)
    if len(names) > 1:
        return {name: _tasks(last, f"{name}/") for name in names}
    return _tasks(last, "")


def _tasks(flat: Mapping[str, Any], prefix: str) -> Results:
    tasks: Results = {}
    for key, value in flat.items():
        task, _, metric = key.removeprefix(prefix).partition("/")
        if key.startswith(prefix) and metric and _TASK.fullmatch(task):
            tasks.setdefault(task, {})[metric] = value
    return tasks


def _by_dataset(results: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Results]:
    nested = results if len(names) > 1 else {names[0] if names else "": results}
    # Skip what is not a task, such as the minutes that the demo adds.
    return {
        name: {task: dict(metrics) for task, metrics in tasks.items() if _TASK.fullmatch(task)}
        for name, tasks in nested.items()
        if isinstance(tasks, Mapping)
    }


@dataclass(frozen=True)
class Predictions:
    """The predictions of the last evaluation on a dataset, and its ground truth.

    Attributes:
        items: detectron2's dataset dicts.
        ground_truth: annotations in COCO's API.
        detections: detections in COCO's result format.
        class_names: names by class index.
        to_class: class index by category id.
    """

    items: list[dict[str, Any]]
    ground_truth: COCO
    detections: list[dict[str, Any]]
    class_names: list[str]
    to_class: dict[int, int]


def load_predictions(run: Run, name: str) -> Predictions:
    """Read the predictions on the dataset ``name``.

    Raises:
        MissingError: the dataset or the predictions are missing.
    """
    path = _results_file(run, name)
    if name not in DatasetCatalog:
        raise MissingError(f"dataset '{name}' is not registered in this process")
    try:
        items = DatasetCatalog.get(name)
        # For datasets that are not in COCO format, the evaluator has left its json in this folder.
        ground_truth = FastCOCOEvaluator(name, output_dir=str(path.parent)).ground_truth
    except FileNotFoundError as error:
        raise MissingError(f"dataset '{name}' is not on disk ({error})") from error
    metadata = MetadataCatalog.get(name)
    class_names = list(metadata.get("thing_classes") or ())
    identity = {index: index for index in range(len(class_names))}
    to_class = metadata.get("thing_dataset_id_to_contiguous_id") or identity
    detections = json.loads(path.read_text(encoding="utf-8"))
    if any(d["image_id"] not in ground_truth.imgs or d["category_id"] not in to_class
           for d in detections):  # fmt: skip
        raise MissingError(f"{path} holds predictions for other images or classes than '{name}'")
    return Predictions(items, ground_truth, detections, class_names, to_class)


def _results_file(run: Run, name: str) -> Path:
    """Find the results: our trainer has a folder per dataset, detectron2's one for all."""
    inference = run.folder / "inference"
    candidates = [inference / name]
    if len(run.dataset_names) == 1:
        candidates.append(inference)
    for folder in candidates:
        path = folder / "coco_instances_results.json"
        if path.is_file():
            return path
    raise MissingError(f"{candidates[0]} has no coco_instances_results.json")
