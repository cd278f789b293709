"""The parts together: every combination trains, predicts and survives its config's dump."""

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2_plugins import get_cfg
from tests.support.helpers import REPO
from tests.support.stock import STOCK_HEADS, behaviour, make_stock, small_batch
from tests.support.toy import toy_cfg

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
BOTTOM_UP = {
    "cspnet": "CSPNet",
    "attention_resnet": "AttentionResNet",
    "timm": "TimmBackbone",
}
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
# Under their names with Inverted Attention off.
OUR_HEADS = {"StandardROIHeads": "PluginROIHeads", "CascadeROIHeads": "PluginCascadeROIHeads"}
SMALL = (
    # All anchors are sampled: no level of the pyramid goes without a loss by chance.
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 1100),
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


@pytest.mark.parametrize(("backbone", "proposals", "heads", "inverted", "mask"), COMBINATIONS)
def test_combination(
    backbone: str, proposals: str, heads: str, inverted: bool, mask: bool, tmp_path: Path
) -> None:
    cfg = combined_cfg(tmp_path, backbone, proposals, heads, inverted, mask)
    torch.manual_seed(0)
    model = build_model(cfg)
    check_parts(model, backbone, proposals, heads, inverted, mask)
    learns(model, mask)
    outputs = detect(model)
    for output in outputs:
        assert len(output) > 0
        assert output.pred_boxes.tensor.isfinite().all()
        assert output.scores.isfinite().all()
        assert output.has("pred_masks") == mask

    (tmp_path / "dump.yaml").write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(tmp_path / "dump.yaml"), allow_unsafe=False)
    # Compared as read: YAML has no tuples within tuples.
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    rebuilt = build_model(again)
    assert list(rebuilt.state_dict()) == list(model.state_dict())
    rebuilt.load_state_dict(model.state_dict())
    for output, other in zip(outputs, detect(rebuilt), strict=True):
        assert torch.equal(output.scores, other.scores)
        assert torch.equal(output.pred_boxes.tensor, other.pred_boxes.tensor)


def check_parts(
    model: nn.Module, backbone: str, proposals: str, heads: str, inverted: bool, mask: bool
) -> None:
    """What the config asks for is there: no key is without effect."""
    assert type(model.backbone.bottom_up).__name__ == BOTTOM_UP[backbone]
    assert type(model.proposal_generator).__name__ == PROPOSALS[proposals][1]
    assert type(model.roi_heads).__name__ == HEADS[heads][1]
    assert (model.roi_heads.inverted_attention is not None) == inverted
    assert model.roi_heads.mask_on == mask


def learns(model: nn.Module, mask: bool) -> None:
    """Two steps, the second with an empty image: finite losses, a gradient everywhere.

    What starts at zero (CBAM's spatial norm, the non-local unit's projection) holds the gradient
    of the layers before it at zero in the first step.
    """
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    reached: set[str] = set()
    model.train()
    with EventStorage():
        for step, objects in enumerate(((3, 2), (3, 0))):
            losses = model(small_batch(step, objects))
            assert all(loss.isfinite() for loss in losses.values()), losses
            assert ("loss_mask" in losses) == mask
            optimizer.zero_grad()
            sum(losses.values()).backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
            assert [name for name, gradient in gradients.items() if gradient is None] == []
            assert all(gradient.isfinite().all() for gradient in gradients.values())
            reached |= {name for name, gradient in gradients.items() if gradient.any()}
            optimizer.step()
    assert sorted(set(gradients) - reached) == []


@torch.no_grad()
def detect(model: nn.Module) -> list[Instances]:
    return [output["instances"] for output in model.eval()(small_batch())]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], dict]:
    """What detectron2 does where d2_plugins was never imported."""
    path = tmp_path_factory.mktemp("stock") / "behaviour.pth"
    subprocess.run([sys.executable, "-m", "tests.support.stock", str(path)], cwd=REPO, check=True)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("heads", STOCK_HEADS)
def test_without_plugins_the_model_is_detectron2s(
    heads: str, mask: bool, untouched: dict[tuple[str, bool], dict]
) -> None:
    """Weights, losses, gradients and detections, bit for bit: under detectron2's names, and under
    ours with all methods off."""
    cfg = make_stock(get_cfg(), heads, mask)
    assert_same(behaviour(cfg), untouched[heads, mask])
    cfg.MODEL.BACKBONE.NAME = "build_attention_resnet_fpn_backbone"
    cfg.MODEL.ROI_HEADS.NAME = OUR_HEADS[heads]
    assert_same(behaviour(cfg), untouched[heads, mask])


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert list(ours) == list(theirs)
    assert [name for name, value in theirs.items() if not torch.equal(ours[name], value)] == []
    assert len(theirs["scores of image 0"]) > 0
