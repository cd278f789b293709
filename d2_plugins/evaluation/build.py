"""The evaluator that a config and a data set ask for."""

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
)

from .coco import FastCOCOEvaluator, check_engine
from .corruptions import build_corruptions
from .proposal_evaluator import ProposalRecallEvaluator

__all__ = ["VOCEvaluator", "build_evaluator", "check_test_config", "predicts_instances"]


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """The evaluator for the predictions that ``cfg`` makes on ``dataset_name``.

    By the ``evaluator_type`` of the metadata: "coco" (also where there is none) gives
    :class:`FastCOCOEvaluator`, and VOC's own AP beside it (``bbox_voc``) for VOC in COCO form
    (``voc_2007_test_coco``, beside detectron2's ``voc_2007_test``); "pascal_voc" gives
    detectron2's evaluator. Box proposals are scored for a ProposalNetwork, and for any model with
    ``TEST.PROPOSAL_RECALL``.

    Args:
        cfg: the whole config.
        dataset_name: a registered data set.
        output_folder: for the predictions and results.

    Raises:
        ValueError: the type is unknown, or a value of ``TEST`` is.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type", "coco")
    if kind not in ("coco", "pascal_voc"):
        raise ValueError(
            f"evaluator_type of data set '{dataset_name}' is '{kind}'; allowed: coco, pascal_voc"
        )
    instances = predicts_instances(cfg)
    evaluators: list[DatasetEvaluator] = []
    if instances and kind == "pascal_voc":
        evaluators.append(PascalVOCDetectionEvaluator(dataset_name))
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
            voc_name = _voc_form(dataset_name)
            if voc_name:
                evaluators.append(VOCEvaluator(voc_name))
        if not instances or cfg.TEST.PROPOSAL_RECALL:
            # The pickle feeds detectors that train on given proposals, which a ProposalNetwork
            # is run for.
            folder = None if instances else output_folder
            evaluators.append(ProposalRecallEvaluator(coco.ground_truth, output_dir=folder))
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def check_test_config(cfg: CfgNode) -> None:
    """Find out before a training, not after it, that ``cfg.TEST`` cannot be evaluated.

    Raises:
        ValueError: a value of ``TEST`` is not allowed.
    """
    check_engine(cfg.TEST.COCO_EVALUATOR)
    build_corruptions(cfg)
    if cfg.TEST.AUG.ENABLED:
        _check_tta(cfg)


def _check_tta(cfg: CfgNode) -> None:
    """The models that detectron2 has test-time augmentation for."""
    for key, value, allowed in (
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, "GeneralizedRCNN"),
        ("MODEL.KEYPOINT_ON", cfg.MODEL.KEYPOINT_ON, False),
        ("MODEL.LOAD_PROPOSALS", cfg.MODEL.LOAD_PROPOSALS, False),
    ):
        if value != allowed:
            raise ValueError(f"{key} is {value}; with TEST.AUG.ENABLED, allowed: {allowed}")
    sizes = cfg.TEST.AUG.MIN_SIZES
    if not sizes or min(sizes) < 1:
        raise ValueError(f"TEST.AUG.MIN_SIZES is {sizes}; allowed: positive sizes, at least one")


def predicts_instances(cfg: CfgNode) -> bool:
    """Whether the model of ``cfg`` detects; a ProposalNetwork only proposes."""
    return cfg.MODEL.META_ARCHITECTURE != "ProposalNetwork"


def _voc_form(dataset_name: str) -> str | None:
    """The name of VOC's own form of ``dataset_name``, if it has one and its XML files are there."""
    name = dataset_name.removesuffix("_coco")
    if name == dataset_name or name not in DatasetCatalog:
        return None
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "pascal_voc":
        return None
    return name if Path(metadata.dirname, "Annotations").is_dir() else None


def _tasks(cfg: CfgNode) -> tuple[str, ...]:
    masks = ("segm",) if cfg.MODEL.MASK_ON else ()
    keypoints = ("keypoints",) if cfg.MODEL.KEYPOINT_ON else ()
    return ("bbox", *masks, *keypoints)


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """VOC's own AP for VOC in COCO form, under the key ``bbox_voc``.

    Made with the name of VOC's own form. Its XML files know an image by its name, COCO's json by
    a number.
    """

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """As the parent's, with the images' names."""
        named = [image | {"image_id": Path(image["file_name"]).stem} for image in inputs]
        super().process(named, outputs)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """``{"bbox_voc": {"AP": ..., "AP50": ..., "AP75": ...}}``; None but in the main process."""
        results = super().evaluate()
        return None if results is None else {"bbox_voc": results["bbox"]}
