"""AP with test-time augmentation, by detectron2's ``GeneralizedRCNNWithTTA``."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from .build import check_tta
from .variants import Results, Variant, evaluate_variants

__all__ = ["evaluate_with_tta", "tta_is_due"]


def tta_is_due(cfg: CfgNode) -> bool:
    """Whether an evaluation that takes place now is to be repeated with augmentation.

    With ``TEST.AUG.ENABLED``; in a training, after its last iteration only, as detectron2's
    train_net.py does: its default sizes are, in pixels, 20 times a plain image of 800.
    """
    in_training = has_event_storage() and get_event_storage().iter < cfg.SOLVER.MAX_ITER
    return cfg.TEST.AUG.ENABLED and not in_training


def evaluate_with_tta(
    cfg: CfgNode,
    model: nn.Module,
    mapper: Callable[[dict[str, Any]], Any],
    results: Results | None = None,
) -> Results:
    """Evaluate ``model`` on ``DATASETS.TEST`` with test-time augmentation.

    Each image is given to the model in every size of ``TEST.AUG.MIN_SIZES`` and, with
    ``TEST.AUG.FLIP``, mirrored; the detections of all are merged by NMS, the masks averaged.

    Args:
        cfg: the whole config.
        model: a GeneralizedRCNN, or its DistributedDataParallel.
        mapper: of test images; one that does not resize, or else they are resized twice.
        results: without augmentation; not changed.

    Returns:
        ``results`` with ``bbox_TTA`` (and ``segm_TTA``) added, see
        :func:`~d2_plugins.evaluation.variants.evaluate_variants`. Recall of proposals is left
        out: those of the augmented images are never brought together.

    Raises:
        ValueError: see :func:`~d2_plugins.evaluation.build.check_tta`.
    """
    check_tta(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.PROPOSAL_RECALL = False
    augmented = GeneralizedRCNNWithTTA(cfg, model)
    augmented.training = model.training  # which evaluation gives back to the model in the end
    return evaluate_variants(cfg, [Variant(name="TTA", model=augmented, mapper=mapper)], results)
