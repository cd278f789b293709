"""What a run has left in its output folder."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO

from ..config import get_cfg
from ..evaluation import FastCOCOEvaluator

__all__ = ["MissingError", "Predictions", "Results", "Run", "load_predictions", "load_run"]

# Task -> metric -> value, as an evaluator returns them.
Results = dict[str, dict[str, float]]

_TASK = re.compile(r"(bbox|segm|keypoints|box_proposals)(_.+)?")


class MissingError(Exception):
    """A part of the report cannot be made; the message says what is missing."""


@dataclass(frozen=True)
class Run:
    """A run, finished or not.

    Attributes:
        folder: its output folder.
        cfg: its config; None if unknown.
        metrics: the rows of ``metrics.json``, in the order of their iterations.
        results: by data set; of the last evaluation.
    """

    folder: Path
    cfg: CfgNode | None
    metrics: list[dict[str, Any]]
    results: dict[str, Results]

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """The data sets that the run is evaluated on."""
        return tuple(self.cfg.DATASETS.TEST) if self.cfg is not None else ()

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Iterations and values of a metric; empty if it was never written."""
        rows = [row for row in self.metrics if isinstance(row.get(key), int | float)]
        return [row["iteration"] for row in rows], [row[key] for row in rows]

    def evaluated_series(self, task: str, metric: str) -> Iterator[tuple[str, list[int], list]]:
        """Data set, iterations and values of an evaluated metric, per data set that has it."""
        prefixed = len(self.dataset_names) > 1
        for name in self.dataset_names or ("",):
            key = f"{name}/{task}/{metric}" if prefixed else f"{task}/{metric}"
            iterations, values = self.series(key)
            if values:
                yield name, iterations, values


def load_run(
    output_dir: str | Path, cfg: CfgNode | None = None, results: Mapping[str, Any] | None = None
) -> Run:
    """Read what is in ``output_dir``.

    Args:
        output_dir: of the run.
        cfg: its config; None reads ``config.yaml``.
        results: as ``Trainer.test`` returns them; None reads ``results.json``, or else takes the
            last evaluation of ``metrics.json``.

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
    return Run(folder, cfg, metrics, _by_dataset(results, names))


def _read_config(path: Path) -> CfgNode | None:
    if not path.is_file():
        return None
    cfg = get_cfg()
    cfg.set_new_allowed(True)  # a key of another version or plugin is no reason to stop here
    cfg.merge_from_file(str(path), allow_unsafe=False)
    return cfg


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows by iteration; of rows with the same one, later values win."""
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
    """Undo detectron2's flattening (``[data set/]task/metric``) of the last values."""
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
    # Not everything beside the tasks is one: a job may have added its time.
    return {
        name: {task: dict(metrics) for task, metrics in tasks.items() if _TASK.fullmatch(task)}
        for name, tasks in nested.items()
        if isinstance(tasks, Mapping)
    }


@dataclass(frozen=True)
class Predictions:
    """The predictions of the last evaluation on a data set, beside its ground truth.

    Attributes:
        items: detectron2's dataset dicts.
        ground_truth: the same in COCO's API.
        detections: in COCO's result format.
        class_names: by contiguous class.
        to_class: category id -> contiguous class.
    """

    items: list[dict[str, Any]]
    ground_truth: COCO
    detections: list[dict[str, Any]]
    class_names: list[str]
    to_class: dict[int, int]


def load_predictions(run: Run, name: str) -> Predictions:
    """Read the predictions on the data set ``name``.

    Raises:
        MissingError: the data set or the predictions are not there.
    """
    path = _results_file(run, name)
    if name not in DatasetCatalog:
        raise MissingError(f"data set '{name}' is not registered in this process")
    try:
        items = DatasetCatalog.get(name)
        # Where the data set is not COCO's, the evaluator has left its json beside the results.
        ground_truth = FastCOCOEvaluator(name, output_dir=str(path.parent)).ground_truth
    except FileNotFoundError as error:
        raise MissingError(f"data set '{name}' is not on disk ({error})") from error
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
    """Our trainer has a folder per data set, detectron2's usual trainers one for all."""
    inference = run.folder / "inference"
    candidates = [inference / name]
    if len(run.dataset_names) == 1:
        candidates.append(inference)
    for folder in candidates:
        path = folder / "coco_instances_results.json"
        if path.is_file():
            return path
    raise MissingError(f"{candidates[0]} has no coco_instances_results.json")
