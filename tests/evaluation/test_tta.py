"""Test-time augmentation: one size is plain inference, several are merged as by hand."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.structures import Instances
from PIL import Image
from pycocotools.mask import decode
from torch import nn
from torchvision.ops import batched_nms

from d2_plugins.data.mapper import PluginDatasetMapper
from d2_plugins.engine import Trainer
from d2_plugins.evaluation import check_test_config
from tests.toy import toy_cfg, write_toy_coco

NAME = "toy_for_tta"
STORED = (96, 122)
HEADS = {
    "PluginROIHeads": (),
    "PluginCascadeROIHeads": ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    "DoubleHeadROIHeads": (
        *("MODEL.DOUBLE_HEAD.LAMBDA_FC", 0.7, "MODEL.DOUBLE_HEAD.LAMBDA_CONV", 0.8),
        *("MODEL.DOUBLE_HEAD.CONV_BLOCKS", "nonlocal", "MODEL.INVERTED_ATTENTION.ENABLED", True),
        *("MODEL.PROPOSAL_GENERATOR.NAME", "CascadeRPN"),
        *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
        *("MODEL.ATTENTION.NAME", "eca"),
    ),
    "CascadeDoubleHeadROIHeads": ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
}
ALL_HEADS = pytest.mark.parametrize("heads", HEADS)
WITH_AND_WITHOUT_MASKS = pytest.mark.parametrize("masks", [False, True])


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    json_file, images = write_toy_coco(tmp_path, num_images=3, size=STORED)
    register_coco_instances(NAME, {}, str(json_file), str(images))
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def tta_cfg(folder: Path, heads: str, masks: bool, *opts: object) -> CfgNode:
    return toy_cfg(
        folder,
        [
            *("DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,)),
            *("MODEL.ROI_HEADS.NAME", heads, "MODEL.MASK_ON", masks, *HEADS[heads]),
            *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
            *("MODEL.DOUBLE_HEAD.FC_DIM", 16, "MODEL.DOUBLE_HEAD.CONV_DIM", 16),
            *("MODEL.DOUBLE_HEAD.NUM_CONV", 1, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
            *("TEST.DETECTIONS_PER_IMAGE", 20, "TEST.AUG.ENABLED", True),
            *("TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.MAX_SIZE", 80, "TEST.AUG.FLIP", False),
            *opts,
        ],
    )


def lively(model: nn.Module) -> nn.Module:
    """Detections that differ: with initial weights all scores of a class are nearly one number."""
    for name, parameter in model.roi_heads.named_parameters():
        if "cls_score" in name or "predictor.weight" in name:
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def loaded(cfg: CfgNode) -> list[dict[str, Any]]:
    """The test images as stored."""
    mapper = PluginDatasetMapper(cfg, is_train=False, augmentations=[])
    return [mapper(item) for item in DatasetCatalog.get(NAME)]


@ALL_HEADS
@WITH_AND_WITHOUT_MASKS
def test_one_size_is_plain_inference(heads: str, masks: bool, dataset: str, tmp_path: Path) -> None:
    cfg = tta_cfg(tmp_path / "plain", heads, masks, "TEST.AUG.ENABLED", False)
    model = lively(build_model(cfg))
    tasks = ["bbox", "segm"] if masks else ["bbox"]
    assert list(Trainer.test(cfg, model)) == tasks
    # Its sizes are its own: the images are resized once, from those that are stored.
    cfg = tta_cfg(tmp_path / "tta", heads, masks, "INPUT.MIN_SIZE_TEST", 40)
    assert list(Trainer.test(cfg, model)) == [*tasks, *(f"{task}_TTA" for task in tasks)]
    plain, augmented = (
        json.loads((tmp_path / path / "coco_instances_results.json").read_text())
        for path in (f"plain/inference/{dataset}", f"tta/inference/{dataset}/TTA")
    )
    assert len({d["score"] for d in plain}) == len(plain) > 30
    for key in ("image_id", "category_id", "score"):
        assert [d[key] for d in augmented] == [d[key] for d in plain], key
    boxes = [np.array([d["bbox"] for d in found]) for found in (augmented, plain)]
    np.testing.assert_allclose(*boxes, atol=1e-3)
    for one, other in zip(augmented, plain, strict=True):
        if masks:
            differs = decode(one["segmentation"]) != decode(other["segmentation"])
            assert differs.mean() < 1e-3
    assert not model.training


@ALL_HEADS
@WITH_AND_WITHOUT_MASKS
def test_sizes_and_mirrors_are_merged_as_by_hand(
    heads: str, masks: bool, dataset: str, tmp_path: Path
) -> None:
    sizes = (64, 88)
    cfg = tta_cfg(tmp_path, heads, masks, "TEST.AUG.MIN_SIZES", sizes, "TEST.AUG.FLIP", True)
    cfg.TEST.AUG.MAX_SIZE = 200
    model = lively(build_model(cfg))
    # One at a time: images padded to a common size would see each other's padding.
    tta = GeneralizedRCNNWithTTA(cfg, model, batch_size=1)
    for image in loaded(cfg):
        with torch.no_grad():
            found = tta([image])[0]["instances"]
            boxes, scores, classes = by_hand(model, image, sizes)
        kept = batched_nms(boxes, scores, classes, cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST)[:20]
        assert len(kept) == 20
        assert torch.equal(found.pred_classes, classes[kept])
        torch.testing.assert_close(found.scores, scores[kept])
        torch.testing.assert_close(found.pred_boxes.tensor, boxes[kept], atol=1e-3, rtol=0)
        if masks:
            assert found.pred_masks.shape == (20, *STORED)
            assert found.pred_masks.any()
            check_masks_are_in_their_boxes(found)


def by_hand(
    model: nn.Module, image: dict[str, Any], sizes: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes, scores and classes of plain inference on every version of an image."""
    height, width = STORED
    pixels = Image.fromarray(image["image"].permute(1, 2, 0).numpy())
    found = []
    for size in sizes:
        resized = np.array(pixels.resize((round(size * width / height), size), Image.BILINEAR))
        for mirrored in (False, True):
            version = resized[:, ::-1].copy() if mirrored else resized
            inputs = {"image": torch.from_numpy(version).permute(2, 0, 1)}
            output = model([inputs | {"height": height, "width": width}])[0]["instances"]
            boxes = output.pred_boxes.tensor
            if mirrored:
                boxes = torch.stack(
                    [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1
                )
            found.append((boxes, output.scores, output.pred_classes))
    boxes, scores, classes = (torch.cat(values) for values in zip(*found, strict=True))
    return boxes, scores, classes


def check_masks_are_in_their_boxes(found: Instances) -> None:
    """Within the pixel that pasting rounds to."""
    for mask, box in zip(found.pred_masks, found.pred_boxes.tensor, strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        if len(rows):
            assert columns.min() >= box[0] - 1
            assert columns.max() <= box[2] + 1
            assert rows.min() >= box[1] - 1
            assert rows.max() <= box[3] + 1


def test_masks_of_a_mirrored_image_are_mirrored(dataset: str, tmp_path: Path) -> None:
    """The versions of an image and of its mirror image are the same, the other way round."""
    cfg = tta_cfg(tmp_path, "DoubleHeadROIHeads", True, "TEST.AUG.FLIP", True)
    cfg.TEST.AUG.MIN_SIZES = STORED[:1]  # as stored: resizing rounds
    cfg.TEST.AUG.MAX_SIZE = STORED[1]
    model = lively(build_model(cfg))
    tta = GeneralizedRCNNWithTTA(cfg, model)
    image = loaded(cfg)[0]
    with torch.no_grad():
        found, other = (
            output["instances"]
            for output in tta([image, image | {"image": image["image"].flip(2)}])
        )
    torch.testing.assert_close(other.scores, found.scores)
    boxes = found.pred_boxes.tensor
    mirrored = torch.stack(
        [STORED[1] - boxes[:, 2], boxes[:, 1], STORED[1] - boxes[:, 0], boxes[:, 3]], dim=1
    )
    torch.testing.assert_close(other.pred_boxes.tensor, mirrored, atol=1e-3, rtol=0)
    assert found.pred_masks.any()
    assert (other.pred_masks.flip(2) != found.pred_masks).float().mean() < 1e-3


def test_a_training_ends_with_it(dataset: str, tmp_path: Path) -> None:
    opts = ("TEST.PROPOSAL_RECALL", True, "TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 2)
    cfg = tta_cfg(tmp_path, "DoubleHeadROIHeads", True, *opts, "TEST.AUG.FLIP", True)
    trainer = Trainer(cfg)
    results = trainer.train()
    assert {"bbox", "segm", "box_proposals", "bbox_TTA", "segm_TTA"} <= set(results)
    assert "box_proposals_TTA" not in results
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert sum("bbox/AP" in line for line in lines) == 2
    assert sum("bbox_TTA/AP" in line for line in lines) == 1
    assert trainer.model.training


def test_no_detection_at_all(dataset: str, tmp_path: Path) -> None:
    cfg = tta_cfg(tmp_path, "PluginROIHeads", True, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0)
    results = Trainer.test(cfg, build_model(cfg).eval())
    assert results["bbox_TTA"]["AP"] == results["segm_TTA"]["AP"] == 0


def test_models_that_it_does_not_know_are_refused(tmp_path: Path) -> None:
    cfg = tta_cfg(tmp_path, "PluginROIHeads", False)
    check_test_config(cfg)
    for key, value, message in (
        ("MODEL.META_ARCHITECTURE", "RetinaNet", r"MODEL\.META_ARCHITECTURE 'RetinaNet'"),
        ("MODEL.META_ARCHITECTURE", "PanopticFPN", r"MODEL\.META_ARCHITECTURE 'PanopticFPN'"),
        ("MODEL.KEYPOINT_ON", True, r"MODEL\.KEYPOINT_ON must be False"),
        ("MODEL.LOAD_PROPOSALS", True, r"MODEL\.LOAD_PROPOSALS must be False"),
        ("TEST.AUG.MIN_SIZES", (), r"TEST\.AUG\.MIN_SIZES is \(\)"),
        ("TEST.AUG.MIN_SIZES", (400, 0), r"TEST\.AUG\.MIN_SIZES is \(400, 0\)"),
    ):
        wrong = cfg.clone()
        wrong.merge_from_list([key, value])
        with pytest.raises(ValueError, match=message):
            check_test_config(wrong)
        wrong.TEST.AUG.ENABLED = False
        check_test_config(wrong)
