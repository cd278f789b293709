"""Builder of the evaluator that a config and a dataset require."""

import logging
from importlib.util import find_spec

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)

from .coco import FastCOCOEvaluator, check_engine
from .corruptions import build_corruptions
from .proposal_evaluator import ProposalRecallEvaluator
from .voc import VOCEvaluator, voc_form

logger = logging.getLogger(__name__)

_KINDS = ("coco", "pascal_voc", "coco_panoptic_seg")

__all__ = ["build_evaluator", "check_test_config", "predicts_instances"]


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """Return the evaluator for the predictions of ``cfg``'s model on ``dataset_name``.

    The ``evaluator_type`` of the metadata decides. "coco", the default, gives
    :class:`~d2_plugins.evaluation.FastCOCOEvaluator`; for a VOC dataset in COCO form, such as
    ``voc_2007_test_coco``, VOC's own AP is added (``bbox_voc``). "pascal_voc" gives
    :class:`~d2_plugins.evaluation.VOCEvaluator`. "coco_panoptic_seg" adds the segmentation of a
    PanopticFPN to "coco": its mean IoU, and its panoptic quality if panopticapi is installed. Box
    proposals are evaluated for a ProposalNetwork, and for any other model if
    ``TEST.PROPOSAL_RECALL`` is set.

    Args:
        cfg: the whole config.
        dataset_name: name of a registered dataset.
        output_folder: folder for predictions and results.

    Raises:
        ValueError: the type is unknown, or a value of ``TEST`` is not allowed.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type", "coco")
    if kind not in _KINDS:
        raise ValueError(
            f"evaluator_type of dataset '{dataset_name}' is '{kind}'; allowed: {', '.join(_KINDS)}"
        )
    with_stuff = kind == "coco_panoptic_seg" and cfg.MODEL.META_ARCHITECTURE == "PanopticFPN"
    kind = "coco" if kind == "coco_panoptic_seg" else kind
    instances = predicts_instances(cfg)
    evaluators: list[DatasetEvaluator] = []
    if instances and kind == "pascal_voc":
        evaluators.append(VOCEvaluator(dataset_name))
    needs_coco = kind == "coco" or not instances or cfg.TEST.PROPOSAL_RECALL
    if needs_coco:
        coco = FastCOCOEvaluator(
            dataset_name,
            tasks=_tasks(cfg),
            output_dir=output_folder,
            engine=cfg.TEST.COCO_EVALUATOR,
            kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        )
        if instances and kind == "coco":
            evaluators.append(coco)
            voc_name = voc_form(dataset_name)
            if voc_name:
                evaluators.append(VOCEvaluator(voc_name, task="bbox_voc"))
        if not instances or cfg.TEST.PROPOSAL_RECALL:
            # Only the proposals of a ProposalNetwork are written: its purpose is to feed detectors
            # that train on precomputed proposals.
            folder = None if instances else output_folder
            evaluators.append(ProposalRecallEvaluator(coco.ground_truth, output_dir=folder))
    if with_stuff:
        evaluators += _segmentation_evaluators(cfg, dataset_name, output_folder)
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _segmentation_evaluators(
    cfg: CfgNode, dataset_name: str, output_folder: str
) -> list[DatasetEvaluator]:
    evaluators: list[DatasetEvaluator] = [SemSegEvaluator(dataset_name, output_dir=output_folder)]
    if cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED:
        if find_spec("panopticapi"):
            evaluators.append(COCOPanopticEvaluator(dataset_name, output_folder))
        else:
            logger.warning(
                "The panoptic quality is left out: panopticapi is not installed "
                "(https://github.com/cocodataset/panopticapi)"
            )
    return evaluators


def check_test_config(cfg: CfgNode) -> None:
    """Check ``cfg.TEST`` before a training instead of at its first evaluation.

    Raises:
        ValueError: a value of ``TEST`` is not allowed.
    """
    check_engine(cfg.TEST.COCO_EVALUATOR)
    build_corruptions(cfg)
    if cfg.TEST.CORRUPTIONS and cfg.MODEL.LOAD_PROPOSALS:
        raise ValueError("MODEL.LOAD_PROPOSALS is True; allowed with TEST.CORRUPTIONS: False")
    if cfg.TEST.AUG.ENABLED:
        _check_tta(cfg)


def _check_tta(cfg: CfgNode) -> None:
    # detectron2 has test-time augmentation for these models only.
    for key, value, allowed in (
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, "GeneralizedRCNN"),
        ("MODEL.KEYPOINT_ON", cfg.MODEL.KEYPOINT_ON, False),
        ("MODEL.LOAD_PROPOSALS", cfg.MODEL.LOAD_PROPOSALS, False),
    ):
        if value != allowed:
            raise ValueError(f"{key} is {value}; allowed with TEST.AUG.ENABLED: {allowed}")
    sizes = cfg.TEST.AUG.MIN_SIZES
    if not sizes or min(sizes) < 1:
        raise ValueError(f"TEST.AUG.MIN_SIZES is {sizes}; allowed: positive sizes, at least one")


def predicts_instances(cfg: CfgNode) -> bool:
    """Return False for a ProposalNetwork, which only proposes boxes, and True otherwise."""
    return cfg.MODEL.META_ARCHITECTURE != "ProposalNetwork"


def _tasks(cfg: CfgNode) -> tuple[str, ...]:
    masks = ("segm",) if cfg.MODEL.MASK_ON else ()
    keypoints = ("keypoints",) if cfg.MODEL.KEYPOINT_ON else ()
    return ("bbox", *masks, *keypoints)
