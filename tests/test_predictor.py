"""Inference as users run it: DefaultPredictor, and batches beside single images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from tests.support.helpers import shared_path
from tests.support.toy import toy_cfg


def lively_model(cfg: CfgNode) -> nn.Module:
    """A random detector with scores and boxes that depend on the image."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    for name, parameter in model.named_parameters():
        if name.endswith((".bbox_pred.weight", ".cls_score.weight", "objectness_logits.weight")):
            nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    cfg = toy_cfg(tmp_path, ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3])
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": lively_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    return cfg


def test_default_predictor_gives_boxes_in_pixels_of_the_photograph(cfg: CfgNode) -> None:
    path = shared_path("data/demo_images/public_domain_cc0/chelsea.png")
    photograph = np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1]
    instances = DefaultPredictor(cfg)(photograph)["instances"]
    height, width = photograph.shape[:2]
    assert instances.image_size == (height, width)
    boxes = instances.pred_boxes.tensor
    assert len(boxes) > 0
    assert (boxes >= 0).all()
    assert (boxes[:, 0::2] <= width).all()
    assert (boxes[:, 1::2] <= height).all()
    # The network saw 80 pixels at most: only boxes scaled back reach beyond that.
    assert boxes.max() > 80


def test_a_batch_gives_what_its_images_give_alone(cfg: CfgNode) -> None:
    """For images of one size. Padding is seen by convolutions near it, in detectron2's FPN and
    RPN too, and has anchors of its own: between sizes there are differences by design."""
    model = lively_model(cfg)
    images: list[dict[str, Any]] = [
        {"image": torch.randint(0, 256, (3, 96, 64)).float(), "height": 192, "width": 128}
        for _ in range(3)
    ]
    with torch.no_grad():
        together = model(images)
        alone = [model([image])[0] for image in images]
    for a, b in zip(together, alone, strict=True):
        assert len(a["instances"]) == len(b["instances"]) > 0
        boxes, expected = a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor
        torch.testing.assert_close(boxes, expected, atol=1e-3, rtol=0)
