"""The parts together: every combination trains, predicts and survives its config's dump."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2_plugins import get_cfg
from tests.support.combinations import COMBINATIONS, HEADS, PROPOSALS, combined_cfg
from tests.support.helpers import REPO
from tests.support.stock import STOCK_HEADS, behaviour, make_stock, small_batch

pytestmark = pytest.mark.slow

BOTTOM_UP = {
    "cspnet": "CSPNet",
    "attention_resnet": "AttentionResNet",
    "timm": "TimmBackbone",
}
# Under their names with Inverted Attention off.
OUR_HEADS = {"StandardROIHeads": "PluginROIHeads", "CascadeROIHeads": "PluginCascadeROIHeads"}


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
    """The model has everything that the config asks for: each key has an effect."""
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
    """Behaviour of detectron2 in a process that never imports d2_plugins."""
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
