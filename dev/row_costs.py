"""Measure the cost of each row of a comparison: training step, image, RoIs of the conv head."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from d2_plugins import model_zoo
from d2_plugins.benchmark.timing import interleaved
from d2_plugins.benchmark.training_step import training_step
from d2_plugins.checkpoint.checkpointer import load_model
from d2_plugins.engine import Trainer
from d2_plugins.modeling.roi_heads.double_head_predictor import DoubleHeadOutputLayers

from .table_runs import TableRun, runs_of
from .trained_tables import Table

__all__ = ["TITLES", "row_costs"]

# Column titles and the names in the result of row_costs.
TITLES = {
    "training step": "train",
    "inference": "inference",
    "RoIs through the conv head": "conv_head_share",
}


def row_costs(
    table: Table, folder: Path, repeats: int = 5, num_images: int = 16, num_timed: int = 4
) -> dict[str, dict[str, float]]:
    """Time every row in turn, with the trained weights of the first seed.

    Time is the CPU time of all threads. The training step is one at the end of the schedule (with
    Inverted Attention where the row has it), without the optimizer.

    Args:
        table: the trained comparison.
        folder: parent of the runs' folders.
        repeats: number of turns.
        num_images: number of validation images of which the RoIs are counted.
        num_timed: number of images that are timed, the first of them.

    Returns:
        By label, the median ratio of a training step and of the inference to the first row's, and
        for a row with a Double-Head the share of the RoIs that its conv head sees at inference.
    """
    runs = [run for run in runs_of(table) if run.seed == table.seeds[0]]
    configs = {run.row.label: _config(run, folder) for run in runs}
    models = {label: load_model(cfg) for label, cfg in configs.items()}
    cfg = next(iter(configs.values()))
    images = list(islice(Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]), num_images))
    batch = next(iter(Trainer.build_train_loader(cfg)))
    with torch.no_grad():
        shares = {label: _conv_head_share(model, images) for label, model in models.items()}
        inference = _ratios(
            {k: partial(_infer, m, images[:num_timed]) for k, m in models.items()}, repeats
        )
    last = cfg.SOLVER.MAX_ITER - 1
    steps = {
        label: partial(training_step, model.train(), model, batch, iteration=last)
        for label, model in models.items()
    }
    train = _ratios(steps, repeats)
    return {
        label: {"train": train[label], "inference": inference[label], **shares[label]}
        for label in models
    }


def _config(run: TableRun, folder: Path) -> Any:
    cfg = model_zoo.get_config(run.row.config)
    cfg.merge_from_list(list(run.opts))
    name = run.name if run.row.weights_of is None else run.source.name
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = str(folder / name / "model_final.pth"), "cpu"
    return cfg


def _ratios(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    seconds = interleaved(runs, repeats)
    base = next(iter(seconds.values()))
    return {
        label: median(a / b for a, b in zip(values, base, strict=True))
        for label, values in seconds.items()
    }


def _conv_head_share(model: nn.Module, images: list[Any]) -> dict[str, float]:
    predictor = model.roi_heads.box_predictor
    if not isinstance(predictor, DoubleHeadOutputLayers):
        return {}
    if not predictor.is_selective:
        return {"conv_head_share": 1.0}
    counts = torch.zeros(2)
    choose = predictor.choose

    def counting(scores: Tensor, *args: Tensor) -> Tensor:
        chosen = choose(scores, *args)
        counts.add_(torch.tensor([len(chosen), len(scores)]))
        return chosen

    with patch.object(predictor, "choose", counting):
        _infer(model, images)
    return {"conv_head_share": (counts[0] / counts[1]).item()}


def _infer(model: nn.Module, images: list[Any]) -> None:
    for image in images:
        model(image)
