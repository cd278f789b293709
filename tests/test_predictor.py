"""Inference as users run it: DefaultPredictor, and batches compared with single images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from PIL import Image

from tests.support.helpers import shared_path
from tests.support.toy import lively_model, toy_cfg


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    cfg = toy_cfg(tmp_path, ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3])
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": lively_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    return cfg


def test_default_predictor_gives_boxes_in_pixels_of_the_photo(cfg: CfgNode) -> None:
    path = shared_path("data/demo_images/public_domain_cc0/chelsea.png")
    photo = np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1]
    instances = DefaultPredictor(cfg)(photo)["instances"]
    height, width = photo.shape[:2]
    assert instances.image_size == (height, width)
    boxes = instances.pred_boxes.tensor
    assert len(boxes) > 0
    assert (boxes >= 0).all()
    assert (boxes[:, 0::2] <= width).all()
    assert (boxes[:, 1::2] <= height).all()
    # The network saw 80 pixels at most: only boxes scaled back reach beyond that.
    assert boxes.max() > 80


def test_a_batch_gives_what_its_images_give_alone(cfg: CfgNode) -> None:
    """Images of one size only: detectron2's FPN and RPN see the padding and have anchors in it."""
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
