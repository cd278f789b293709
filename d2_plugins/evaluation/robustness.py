"""AP on corrupted test images."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from .corruptions import CorruptionMapper, build_corruptions
from .variants import Results, Variant, evaluate_variants

__all__ = ["evaluate_corruptions"]


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
        results: on clean images; not changed.

    Returns:
        ``results`` with a task per task and corruption added: ``bbox_occlusion``, ``bbox_blur``,
        ``segm_blur``, ..., see :func:`~d2_plugins.evaluation.variants.evaluate_variants`.

    Raises:
        ValueError: see :func:`~d2_plugins.evaluation.build_corruptions`.
    """
    variants = [
        Variant(name=c.name, model=model, mapper=CorruptionMapper(mapper, c))
        for c in build_corruptions(cfg)
    ]
    return evaluate_variants(cfg, variants, results)
