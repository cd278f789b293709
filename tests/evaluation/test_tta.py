"""Test-time augmentation: one plain view gives the plain results, more give those of more."""

import json
import re
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import batched_nms

from d2_plugins.data.mapper import PluginDatasetMapper
from d2_plugins.evaluation import (
    ProposalRecorder,
    check_test_config,
    evaluate_tta,
    merge_results,
)
from tests.support.random_coco import Registered
from tests.support.tiny_model import evaluate, random_images, tiny_cfg
from tests.support.toy import toy_cfg

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize("roi_heads", HEADS)
def test_sizes_and_flips_are_merged_as_by_hand(roi_heads: str, tmp_path: Path) -> None:
    cfg = detector_cfg(tmp_path, roi_heads)
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = (64, 88), 200, True
    torch.manual_seed(0)
    model = lively(build_model(cfg).eval())
    pixels = torch.randint(256, (3, 96, 122), dtype=torch.uint8)
    # One at a time: images padded to a common size would see each other's padding.
    augmented = GeneralizedRCNNWithTTA(cfg, model, batch_size=1)
    with torch.no_grad():
        found = augmented([{"image": pixels, "height": 96, "width": 122}])[0]["instances"]
        boxes, scores, classes = by_hand(model, pixels, cfg.TEST.AUG.MIN_SIZES)
    kept = batched_nms(boxes, scores, classes, cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST)[:20]
    assert len(found) == 20
    assert torch.equal(found.pred_classes, classes[kept])
    assert torch.allclose(found.scores, scores[kept], atol=1e-6)
    assert torch.allclose(found.pred_boxes.tensor, boxes[kept], atol=1e-3)
    assert found.pred_masks.shape == (20, 96, 122)
    for mask, (x0, y0, x1, y1) in zip(found.pred_masks, boxes[kept], strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        assert ((columns >= x0 - 1) & (columns <= x1 + 1)).all()
        assert ((rows >= y0 - 1) & (rows <= y1 + 1)).all()
    assert found.pred_masks.any()


def lively(model: nn.Module) -> nn.Module:
    """Scores that differ: with initial weights those of a class are nearly one number."""
    for name, parameter in model.roi_heads.named_parameters():
        if "cls_score" in name or "predictor.weight" in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def by_hand(
    model: nn.Module, pixels: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and classes of plain inference on every view of an image."""
    height, width = pixels.shape[1:]
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    found = []
    for size, flip in product(sizes, (False, True)):
        view = np.array(image.resize((round(size * width / height), size), Image.BILINEAR))
        view = torch.from_numpy(view[:, ::-1].copy() if flip else view).permute(2, 0, 1)
        detected = model([{"image": view, "height": height, "width": width}])[0]["instances"]
        boxes = detected.pred_boxes.tensor
        if flip:
            boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
            boxes += torch.tensor([width, 0, width, 0])
        found.append((boxes, detected.scores, detected.pred_classes))
    boxes, scores, classes = (torch.cat(part) for part in zip(*found, strict=True))
    return boxes, scores, classes


@pytest.mark.parametrize("roi_heads", HEADS)
def test_an_image_without_detections(roi_heads: str, tmp_path: Path) -> None:
    cfg = detector_cfg(tmp_path, roi_heads)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.AUG.FLIP = 1.1, True
    image = {"image": torch.zeros(3, 64, 80, dtype=torch.uint8), "height": 64, "width": 80}
    with torch.no_grad():
        found = GeneralizedRCNNWithTTA(cfg, build_model(cfg).eval())([image])[0]["instances"]
    assert len(found) == 0
    assert found.pred_masks.shape == (0, 64, 80)


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
