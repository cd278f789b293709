"""COCO and VOC evaluation, recall of proposals, corrupted images, test-time augmentation."""

from .build import build_evaluator, check_test_config, predicts_instances
from .coco import FastCOCOEvaluator, evaluate_detections
from .corruptions import CORRUPTIONS, Corruption, CorruptionMapper, build_corruptions
from .proposal_evaluator import ProposalRecallEvaluator, ProposalRecorder
from .proposal_recall import ProposalRecall
from .variants import evaluate_corruptions, evaluate_tta, merge_results
from .voc import VOCEvaluator

__all__ = [
    "CORRUPTIONS",
    "Corruption",
    "CorruptionMapper",
    "FastCOCOEvaluator",
    "ProposalRecall",
    "ProposalRecallEvaluator",
    "ProposalRecorder",
    "VOCEvaluator",
    "build_corruptions",
    "build_evaluator",
    "check_test_config",
    "evaluate_corruptions",
    "evaluate_detections",
    "evaluate_tta",
    "merge_results",
    "predicts_instances",
]
