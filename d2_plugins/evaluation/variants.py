"""Evaluation with corrupted images and with test-time augmentation."""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import nn

from ..progress import with_progress
from .build import build_evaluator
from .corruptions import Corruption, CorruptionMapper, build_corruptions

__all__ = ["Results", "evaluate_corruptions", "evaluate_tta", "evaluate_variant", "merge_results"]

logger = logging.getLogger(__name__)

Results = dict[str, Any]


def evaluate_corruptions(
    cfg: CfgNode,
    model: nn.Module,
    mapper: Callable[[dict[str, Any]], Any],
    results: Results | None = None,
) -> Results:
    """Evaluate ``model`` on ``DATASETS.TEST``, once per corruption of ``TEST.CORRUPTIONS``.

    Args:
        cfg: the whole config.
        model: a model as ``inference_on_dataset`` of detectron2 takes it.
        mapper: mapper of the test images; it must have ``augmentations`` (see
            :class:`~d2_plugins.evaluation.CorruptionMapper`).
        results: results on clean images, as ``DefaultTrainer.test`` returns them; not changed.

    Returns:
        ``results`` with one more task per task and corruption: ``bbox_occlusion``, ``bbox_blur``,
        ``segm_blur``, ... With several datasets the results are nested by dataset, as those of
        ``DefaultTrainer.test`` are. Predictions are written under
        ``OUTPUT_DIR/inference/<dataset>/<corruption>``.

    Raises:
        ValueError: see :func:`~d2_plugins.evaluation.build_corruptions`.
    """
    names = cfg.DATASETS.TEST
    nested = OrderedDict(results or {}) if len(names) > 1 else {names[0]: results or {}}
    for name in names:
        nested[name] = OrderedDict(nested.get(name, {}))
        for corruption in build_corruptions(cfg):
            nested[name].update(_evaluate_corruption(cfg, model, mapper, name, corruption))
    return nested if len(names) > 1 else nested[names[0]]


def _evaluate_corruption(
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


def evaluate_tta(
    cfg: CfgNode, model: nn.Module, build_mapper: Callable[[CfgNode], Callable[..., Any]]
) -> Results:
    """Evaluate ``model`` on ``DATASETS.TEST``, each image in all sizes and flips of ``TEST.AUG``.

    detectron2's ``train_net`` resizes images to ``INPUT.MIN_SIZE_TEST`` first and from there to
    each of ``TEST.AUG.MIN_SIZES``. Here images are resized once, from their original size. With
    one size and without flipping, the result equals that of the evaluation without augmentation.

    Args:
        cfg: the whole config.
        model: a GeneralizedRCNN, or a DistributedDataParallel around one.
        build_mapper: function from a config to the mapper of the test images.

    Returns:
        Results as ``DefaultTrainer.test`` returns them, with tasks named ``bbox_TTA`` and so on.
        Predictions are written under ``OUTPUT_DIR/inference_TTA/<dataset>``.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST = 0  # no resizing by the mapper
    cfg.TEST.PROPOSAL_RECALL = False  # the proposals belong to several images, not to one
    augmented = GeneralizedRCNNWithTTA(cfg, model)
    augmented.training = model.training  # the mode that inference_on_dataset restores
    results = OrderedDict()
    for name in cfg.DATASETS.TEST:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA", name)
        results[name] = evaluate_variant(
            cfg, augmented, build_mapper(cfg), name, folder=folder, suffix="TTA"
        )
    return results if len(results) > 1 else next(iter(results.values()), {})


def evaluate_variant(
    cfg: CfgNode,
    model: nn.Module,
    mapper: Callable[[dict[str, Any]], Any],
    dataset_name: str,
    *,
    folder: str,
    suffix: str,
) -> Results:
    """Evaluate ``model`` on one dataset and rename the tasks of the results.

    Args:
        cfg: the whole config.
        model: a model as ``inference_on_dataset`` of detectron2 takes it.
        mapper: mapper of the test images.
        dataset_name: name of a registered dataset.
        folder: folder for the predictions.
        suffix: ending of the task names, which separates them from those of the plain evaluation.

    Returns:
        Metrics by task; the task ``bbox`` is named ``bbox_<suffix>``.
    """
    # Not from cfg: with MODEL.LOAD_PROPOSALS, detectron2 would unpickle files of proposals.
    dataset = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    loader = build_detection_test_loader(
        dataset, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    loader = with_progress(loader, f"evaluating {dataset_name}, {suffix}")
    results = inference_on_dataset(model, loader, build_evaluator(cfg, dataset_name, folder))
    print_csv_format(results)
    return {f"{task}_{suffix}": values for task, values in results.items()}


def merge_results(results: Results, more: Results) -> Results:
    """Return ``results`` with the tasks of ``more`` added, nested by dataset or not."""
    return results | {name: results.get(name, {}) | metrics for name, metrics in more.items()}
