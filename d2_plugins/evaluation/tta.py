"""Evaluation with test-time augmentation: detectron2's, on images that are resized only once."""

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import nn

from .variants import Results, evaluate_variant

__all__ = ["evaluate_tta"]


def evaluate_tta(
    cfg: CfgNode, model: nn.Module, build_mapper: Callable[[CfgNode], Callable[..., Any]]
) -> Results:
    """Evaluate ``model`` on ``DATASETS.TEST``, each image in all sizes and flips of ``TEST.AUG``.

    detectron2's ``train_net`` resizes images to ``INPUT.MIN_SIZE_TEST`` and from there to each of
    ``TEST.AUG.MIN_SIZES``; here they come in their own size. With one size and no flip the result
    is that of the plain evaluation.

    Args:
        cfg: the whole config.
        model: a GeneralizedRCNN, or its DistributedDataParallel.
        build_mapper: the mapper of test images that a config asks for.

    Returns:
        As ``DefaultTrainer.test``, the tasks called ``bbox_TTA`` and so on. Predictions are written
        under ``OUTPUT_DIR/inference_TTA/<data set>``.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST = 0  # as they are
    cfg.TEST.PROPOSAL_RECALL = False  # the proposals are of many images, not of one
    augmented = GeneralizedRCNNWithTTA(cfg, model)
    augmented.training = model.training  # what inference_on_dataset goes back to
    results = OrderedDict()
    for name in cfg.DATASETS.TEST:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA", name)
        results[name] = evaluate_variant(
            cfg, augmented, build_mapper(cfg), name, folder=folder, suffix="TTA"
        )
    return results if len(results) > 1 else next(iter(results.values()), {})
