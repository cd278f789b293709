"""Test-time augmentation: one plain view gives the plain results, more give those of more."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model

from d2_plugins.data.mapper import PluginDatasetMapper
from d2_plugins.engine.trainer import merge_results
from d2_plugins.evaluation import ProposalRecorder, check_test_config, evaluate_tta
from tests.evaluation.random_coco import Registered
from tests.evaluation.tiny_model import evaluate, random_images, tiny_cfg
from tests.toy import toy_cfg

HEADS = [
    "PluginROIHeads",
    "PluginCascadeROIHeads",
    "DoubleHeadROIHeads",
    "CascadeDoubleHeadROIHeads",
]


def detector_cfg(folder: Path, roi_heads: str) -> CfgNode:
    cascade = roi_heads.endswith("CascadeROIHeads") or roi_heads.startswith("Cascade")
    opts = [
        *("MODEL.ROI_HEADS.NAME", roi_heads, "MODEL.MASK_ON", True),
        *("MODEL.DOUBLE_HEAD.FC_DIM", 32, "MODEL.DOUBLE_HEAD.CONV_DIM", 32),
        *("MODEL.DOUBLE_HEAD.LAMBDA_FC", 0.7, "MODEL.DOUBLE_HEAD.LAMBDA_CONV", 0.8),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", cascade),
        *("MODEL.PROPOSAL_GENERATOR.NAME", "CascadeRPN"),
        *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 20),
        *("TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.MAX_SIZE", 80, "TEST.AUG.FLIP", False),
    ]
    return toy_cfg(folder, opts)


@pytest.mark.parametrize("roi_heads", HEADS)
def test_one_plain_view_gives_the_plain_detections(roi_heads: str, tmp_path: Path) -> None:
    cfg = detector_cfg(tmp_path, roi_heads)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    image = {"image": torch.randint(256, (3, 64, 80), dtype=torch.uint8), "height": 64, "width": 80}
    with torch.no_grad():
        plain = model([image])[0]["instances"]
        augmented = GeneralizedRCNNWithTTA(cfg, model)([image])[0]["instances"]
    assert len(plain) == 20
    assert torch.allclose(plain.pred_boxes.tensor, augmented.pred_boxes.tensor, atol=1e-4)
    assert torch.equal(plain.scores, augmented.scores)
    assert torch.equal(plain.pred_classes, augmented.pred_classes)
    # Thresholded probabilities, of boxes that differ in their last bits.
    assert (plain.pred_masks == augmented.pred_masks).float().mean() > 0.999


@pytest.mark.parametrize("roi_heads", HEADS)
def test_a_flip_is_undone(roi_heads: str, tmp_path: Path) -> None:
    cfg = detector_cfg(tmp_path, roi_heads)
    cfg.TEST.AUG.FLIP = True
    torch.manual_seed(0)
    model = GeneralizedRCNNWithTTA(cfg, build_model(cfg).eval())
    pixels = torch.randint(256, (3, 64, 80), dtype=torch.uint8)
    with torch.no_grad():
        here, there = (
            model([{"image": view, "height": 64, "width": 80}])[0]["instances"]
            for view in (pixels, pixels.flip(2))
        )
    # The views of the mirrored image are those of the image, in the other order.
    assert torch.allclose(here.scores, there.scores, atol=1e-5)
    boxes = there.pred_boxes.tensor[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
    boxes += torch.tensor([80, 0, 80, 0])
    assert torch.allclose(here.pred_boxes.tensor, boxes, atol=1e-3)
    assert (here.pred_masks == there.pred_masks.flip(2)).float().mean() > 0.99


def test_results_of_one_plain_view_are_the_plain_results(tmp_path: Path) -> None:
    data = random_images(tmp_path, seed=1)
    one_view = ["TEST.AUG.MIN_SIZES", (128,), "TEST.AUG.MAX_SIZE", 128, "TEST.AUG.FLIP", False]
    with Registered(tmp_path, data, "augmented") as name:
        cfg = tiny_cfg(tmp_path, name, *one_view, "TEST.PROPOSAL_RECALL", True)
        torch.manual_seed(1)
        model = build_model(cfg)
        evaluate(cfg, ProposalRecorder(model))
        plain = detections(tmp_path)
        folder = tmp_path / "inference_TTA" / name
        results = evaluate_tta(cfg, model, partial(PluginDatasetMapper, is_train=False))
        augmented = detections(folder)
        cfg.TEST.AUG.FLIP = True
        evaluate_tta(cfg, model, partial(PluginDatasetMapper, is_train=False))
        flipped = detections(folder)
    assert list(results) == ["bbox_TTA"]
    assert len(plain) == len(augmented) > 100
    assert plain == pytest.approx(augmented, abs=1e-3)
    assert len(flipped) != len(plain) or not np.allclose(flipped, plain, atol=1e-3)
    assert model.training


def detections(folder: Path) -> np.ndarray:
    """(N, 6) image, score and box of all detections that were written."""
    rows = json.loads((folder / "coco_instances_results.json").read_text())
    return np.array([[row["image_id"], row["score"], *row["bbox"]] for row in rows])


def test_results_are_merged_by_task_or_by_data_set() -> None:
    one = {"bbox": {"AP": 1.0}}
    assert merge_results(one, {"bbox_TTA": {"AP": 2.0}}) == {**one, "bbox_TTA": {"AP": 2.0}}
    two = {"a": {"bbox": {"AP": 1.0}}, "b": {}}
    merged = merge_results(two, {"a": {"bbox_TTA": {"AP": 2.0}}})
    assert merged == {"a": {"bbox": {"AP": 1.0}, "bbox_TTA": {"AP": 2.0}}, "b": {}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.META_ARCHITECTURE", "ProposalNetwork"),
        ("MODEL.KEYPOINT_ON", True),
        ("MODEL.LOAD_PROPOSALS", True),
        ("TEST.AUG.MIN_SIZES", (64, 0)),
    ],
)
def test_models_without_it_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, ["TEST.AUG.ENABLED", True, key, value])
    with pytest.raises(ValueError, match=re.escape(f"{key} is {value};")):
        check_test_config(cfg)
