"""The parts together: every combination trains, predicts and survives its config's dump."""

from itertools import product
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from d2_plugins import get_cfg, model_zoo

from .toy import toy_cfg

BACKBONES = {
    "cspnet": ("MODEL.BACKBONE.NAME", "build_cspnet_fpn_backbone", "MODEL.ATTENTION.NAME", "eca"),
    "attention_resnet": (
        *("MODEL.BACKBONE.NAME", "build_attention_resnet_fpn_backbone"),
        *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.NORM", "BN"),
        *("MODEL.ATTENTION.NAME", "cbam", "MODEL.ATTENTION.REDUCTION", 4),
    ),
    "timm": (
        *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NORM", "BN"),
        *("MODEL.TIMM.NAME", "lcnet_035"),
    ),
}
# Without PIXEL_STD and the like, which have their own tests.
PROPOSALS = {
    "rpn": ("MODEL.PROPOSAL_GENERATOR.NAME", "RPN"),
    "cascade_rpn": (
        *("MODEL.PROPOSAL_GENERATOR.NAME", "CascadeRPN"),
        *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
    ),
}
HEADS = {
    "standard": ("MODEL.ROI_HEADS.NAME", "PluginROIHeads"),
    "double_head": (
        *("MODEL.ROI_HEADS.NAME", "DoubleHeadROIHeads"),
        *("MODEL.DOUBLE_HEAD.LAMBDA_FC", 0.7, "MODEL.DOUBLE_HEAD.LAMBDA_CONV", 0.8),
        *("MODEL.DOUBLE_HEAD.CONV_BLOCKS", "nonlocal"),
    ),
    "cascade_double_head": (
        *("MODEL.ROI_HEADS.NAME", "CascadeDoubleHeadROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    ),
}
SMALL = (
    *("MODEL.DOUBLE_HEAD.FC_DIM", 16, "MODEL.DOUBLE_HEAD.CONV_DIM", 16),
    *("MODEL.DOUBLE_HEAD.NUM_CONV", 1),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5),
)
COMBINATIONS = list(product(BACKBONES, PROPOSALS, HEADS, (False, True), (False, True)))


def combined_cfg(
    output: Path, backbone: str, proposals: str, heads: str, inverted: bool, mask: bool
) -> CfgNode:
    return toy_cfg(
        output,
        [
            *SMALL,
            *BACKBONES[backbone],
            *PROPOSALS[proposals],
            *HEADS[heads],
            *("MODEL.INVERTED_ATTENTION.ENABLED", inverted, "MODEL.MASK_ON", mask),
        ],
    )


def batch(seed: int = 0) -> list[dict]:
    """Two images, one of them without objects."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 10.0, 75.0, 44.0], [8.0, 8.0, 24.0, 24.0]])
    inputs = []
    for present in (slice(None), slice(0)):
        masks = torch.zeros(3, 64, 80, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances = Instances(
            (64, 80),
            gt_boxes=Boxes(boxes[present]),
            gt_classes=torch.tensor([0, 1, 0])[present],
            gt_masks=BitMasks(masks[present]),
        )
        image = torch.randint(0, 256, (3, 64, 80), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "height": 64, "width": 80, "instances": instances})
    return inputs


@pytest.mark.parametrize(("backbone", "proposals", "heads", "inverted", "mask"), COMBINATIONS)
def test_combination(
    backbone: str, proposals: str, heads: str, inverted: bool, mask: bool, tmp_path: Path
) -> None:
    cfg = combined_cfg(tmp_path, backbone, proposals, heads, inverted, mask)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with EventStorage():
        for step in range(2):
            losses = model(batch(step))
            assert all(loss.isfinite() for loss in losses.values()), losses
            assert ("loss_mask" in losses) == mask
            optimizer.zero_grad()
            sum(losses.values()).backward()
            without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
            assert without == []
            optimizer.step()
    model.eval()
    with torch.no_grad():
        outputs = model(batch())
    assert len(outputs) == 2
    for output in outputs:
        assert output["instances"].pred_boxes.tensor.isfinite().all()
        assert output["instances"].has("pred_masks") == mask

    (tmp_path / "dump.yaml").write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(tmp_path / "dump.yaml"), allow_unsafe=False)
    rebuilt = build_model(again).eval()
    rebuilt.load_state_dict(model.state_dict())  # strict
    with torch.no_grad():
        repeated = rebuilt(batch())
    for output, other in zip(outputs, repeated, strict=True):
        assert torch.equal(output["instances"].scores, other["instances"].scores)


@pytest.mark.parametrize("heads", ["StandardROIHeads", "CascadeROIHeads"])
def test_without_plugins_the_model_is_detectron2s(heads: str) -> None:
    results = []
    for make_cfg in (detectron2_get_cfg, get_cfg):
        cfg = make_cfg()
        stock = model_zoo.get_config("Base-RCNN-FPN.yaml")
        for node in ("RESNETS", "FPN", "ANCHOR_GENERATOR", "RPN", "ROI_MASK_HEAD"):
            cfg.MODEL[node].merge_from_other_cfg(stock.MODEL[node])
        cfg.merge_from_list(
            [
                *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.DEVICE", "cpu"),
                *("MODEL.ROI_HEADS.NAME", heads, "MODEL.MASK_ON", True),
                *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
                *("MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
                *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 2),
                *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
                *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", heads == "CascadeROIHeads"),
                *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
                *("MODEL.FPN.OUT_CHANNELS", 16),
            ]
        )
        torch.manual_seed(0)
        model = build_model(cfg)
        state = model.state_dict()
        torch.manual_seed(1)
        with EventStorage():
            losses = model.train()(batch())
        model.eval()
        with torch.no_grad():
            found = [output["instances"] for output in model(batch())]
        results.append((state, losses, found))
    (state, losses, found), (our_state, our_losses, our_found) = results
    assert list(our_state) == list(state)
    assert all(torch.equal(our_state[name], state[name]) for name in state)
    assert our_losses.keys() == losses.keys()
    assert all(torch.equal(our_losses[name], losses[name]) for name in losses)
    for ours, stock_found in zip(our_found, found, strict=True):
        assert len(ours)
        assert torch.equal(ours.pred_boxes.tensor, stock_found.pred_boxes.tensor)
        assert torch.equal(ours.scores, stock_found.scores)
        assert torch.equal(ours.pred_masks, stock_found.pred_masks)
