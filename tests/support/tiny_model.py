"""A stock two-stage detector of a few thousand parameters, and images to run it on."""

from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from PIL import Image
from torch import nn

from d2_plugins import get_cfg
from d2_plugins.evaluation import build_evaluator
from tests.support.random_coco import SIZE, random_annotations


def tiny_cfg(output_dir: Path, dataset_name: str, *opts: object) -> CfgNode:
    """detectron2's Faster R-CNN with FPN, shrunken; ``opts`` are KEY VALUE pairs."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [96], [128]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    # Untrained: only proposals that lie all over the image cover anything.
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 4000
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 600
    cfg.MODEL.RPN.NMS_THRESH = 0.3
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.01
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    cfg.INPUT.MIN_SIZE_TEST = 128
    cfg.INPUT.MAX_SIZE_TEST = 128
    cfg.DATASETS.TEST = (dataset_name,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.merge_from_list(list(opts))
    return cfg


def evaluate(cfg: CfgNode, model: nn.Module) -> dict[str, dict[str, float]]:
    """As DefaultTrainer.test, on one dataset."""
    (name,) = cfg.DATASETS.TEST
    evaluator = build_evaluator(cfg, name, cfg.OUTPUT_DIR)
    return inference_on_dataset(model, build_detection_test_loader(cfg, name), evaluator)


def random_images(folder: Path, seed: int, num_images: int = 4) -> dict[str, Any]:
    """A random dataset (see ``random_annotations``) with its images written to ``folder``."""
    data = random_annotations(seed, num_images)
    rng = np.random.default_rng(seed)
    for image in data["images"]:
        coarse = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIZE, SIZE)).save(folder / image["file_name"])
    return data
