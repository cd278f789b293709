"""One more evaluation of a data set, with other images or another way to run the model."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset, print_csv_format
from torch import nn

from .build import build_evaluator

__all__ = ["Results", "evaluate_variant"]

Results = dict[str, Any]


def evaluate_variant(
    cfg: CfgNode,
    model: nn.Module,
    mapper: Callable[[dict[str, Any]], Any],
    dataset_name: str,
    *,
    folder: str,
    suffix: str,
) -> Results:
    """Evaluate ``model`` on a data set.

    Args:
        cfg: the whole config.
        model: as for detectron2's ``inference_on_dataset``.
        mapper: of test images.
        dataset_name: a registered data set.
        folder: for the predictions.
        suffix: what tells the tasks from those of the plain evaluation.

    Returns:
        Metrics by task, a task ``bbox`` called ``bbox_<suffix>``.
    """
    loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
    results = inference_on_dataset(model, loader, build_evaluator(cfg, dataset_name, folder))
    print_csv_format(results)
    return {f"{task}_{suffix}": values for task, values in results.items()}
