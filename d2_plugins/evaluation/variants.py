"""Further evaluations of the test sets, beside the plain one: on other images, or otherwise."""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset, print_csv_format
from torch import nn

from .build import build_evaluator

__all__ = ["Results", "Variant", "evaluate_variants"]

logger = logging.getLogger(__name__)

Results = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One more way to evaluate.

    Attributes:
        name: ends the names of its tasks, and names the folder of its predictions.
        model: as for detectron2's ``inference_on_dataset``.
        mapper: of test images.
    """

    name: str
    model: nn.Module
    mapper: Callable[[dict[str, Any]], Any]


def evaluate_variants(
    cfg: CfgNode, variants: Sequence[Variant], results: Results | None = None
) -> Results:
    """Evaluate each variant on each set of ``DATASETS.TEST``.

    Args:
        cfg: the whole config.
        variants: what to evaluate.
        results: of the plain evaluation, as ``DefaultTrainer.test`` returns them; not changed.

    Returns:
        ``results`` with the tasks of the variants added, e.g. ``bbox_blur`` for the task ``bbox``
        of the variant ``blur``. Nested by data set where there are several, as
        ``DefaultTrainer.test`` does. Predictions are written under
        ``OUTPUT_DIR/inference/<data set>/<variant>``.
    """
    names = cfg.DATASETS.TEST
    nested = OrderedDict(results or {}) if len(names) > 1 else {names[0]: results or {}}
    for name in names:
        nested[name] = OrderedDict(nested.get(name, {}))
        for variant in variants:
            nested[name].update(_evaluate(cfg, variant, name))
    return nested if len(names) > 1 else nested[names[0]]


def _evaluate(cfg: CfgNode, variant: Variant, dataset_name: str) -> Results:
    logger.info("Evaluating %s, %s", dataset_name, variant.name)
    loader = build_detection_test_loader(cfg, dataset_name, mapper=variant.mapper)
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name, variant.name)
    evaluator = build_evaluator(cfg, dataset_name, folder)
    results = inference_on_dataset(variant.model, loader, evaluator)
    print_csv_format(results)
    return {f"{task}_{variant.name}": values for task, values in results.items()}
