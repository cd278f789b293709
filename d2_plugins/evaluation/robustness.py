"""AP on corrupted test images."""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from .corruptions import Corruption, CorruptionMapper, build_corruptions
from .variants import Results, evaluate_variant

__all__ = ["evaluate_corruptions"]

logger = logging.getLogger(__name__)


def evaluate_corruptions(
    cfg: CfgNode,
    model: nn.Module,
    mapper: Callable[[dict[str, Any]], Any],
    results: Results | None = None,
) -> Results:
    """Evaluate ``model`` on ``DATASETS.TEST``, once per corruption of ``TEST.CORRUPTIONS``.

    Args:
        cfg: the whole config.
        model: as for detectron2's ``inference_on_dataset``.
        mapper: of test images; must have ``augmentations`` (see :class:`CorruptionMapper`).
        results: on clean images, as ``DefaultTrainer.test`` returns them; not changed.

    Returns:
        ``results`` with a task per task and corruption added: ``bbox_occlusion``, ``bbox_blur``,
        ``segm_blur``, ... Nested by data set where there are several, as ``DefaultTrainer.test``
        does. Predictions are written under ``OUTPUT_DIR/inference/<data set>/<corruption>``.

    Raises:
        ValueError: see :func:`~d2_plugins.evaluation.build_corruptions`.
    """
    names = cfg.DATASETS.TEST
    nested = OrderedDict(results or {}) if len(names) > 1 else {names[0]: results or {}}
    for name in names:
        nested[name] = OrderedDict(nested.get(name, {}))
        for corruption in build_corruptions(cfg):
            nested[name].update(_evaluate(cfg, model, mapper, name, corruption))
    return nested if len(names) > 1 else nested[names[0]]


def _evaluate(
    cfg: CfgNode,
    model: nn.Module,
    mapper: Callable[[dict[str, Any]], Any],
    dataset_name: str,
    corruption: Corruption,
) -> Results:
    logger.info("Evaluating %s under %s", dataset_name, corruption.name)
    corrupted = CorruptionMapper(mapper, corruption)
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name, corruption.name)
    return evaluate_variant(
        cfg, model, corrupted, dataset_name, folder=folder, suffix=corruption.name
    )
