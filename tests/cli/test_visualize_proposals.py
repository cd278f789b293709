"""The picture of Cascade RPN's stages: what is followed, and that the command draws it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from d2_plugins.cli.visualize_proposals import main
from d2_plugins.visualization.cascade_rpn import choose_cells, trace_cells
from tests.support.toy import toy_cfg


def crpn_cfg(folder: Path, stages: int = 2) -> CfgNode:
    cfg = toy_cfg(folder)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "CascadeRPN"
    cfg.MODEL.CASCADE_RPN.NUM_STAGES = stages
    strides = [2 ** int(name[1:]) for name in cfg.MODEL.RPN.IN_FEATURES]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8 * stride] for stride in strides]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    return cfg


def lively(cfg: CfgNode) -> nn.Module:
    """A model whose stages move their boxes."""
    model = build_model(cfg).eval()
    for parameter in model.proposal_generator.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def test_cells_are_followed_through_the_stages(tmp_path: Path) -> None:
    model = lively(crpn_cfg(tmp_path))
    image = torch.rand(3, 64, 96) * 255
    chosen = trace_cells(model, image, num_cells=3)
    assert len(chosen.names) == 3
    assert len(chosen.boxes) == 3
    # The last boxes are proposals, of the scores shown.
    (proposals,) = model([{"image": image}])
    found = proposals["proposals"]
    for box, score in zip(chosen.boxes[-1], chosen.scores, strict=True):
        distance = (found.proposal_boxes.tensor - box).abs().amax(dim=1)
        assert distance.min() < 1e-3
        logit = found.objectness_logits[distance.argmin()]
        assert logit.sigmoid().item() == pytest.approx(score.item(), abs=1e-5)
    assert torch.equal(chosen.sampled, chosen.boxes[1])
    assert not torch.equal(chosen.boxes[0], chosen.boxes[1])


def test_chosen_by_name(tmp_path: Path) -> None:
    cfg = crpn_cfg(tmp_path, stages=1)
    level = cfg.MODEL.RPN.IN_FEATURES[1]
    stride = 2 ** int(level[1:])
    model = lively(cfg)
    image = torch.rand(3, 64, 96) * 255
    chosen = trace_cells(model, image, cells=[f"{level}:2:1"])
    assert chosen.names == [f"{level} (2, 1)"]
    side = 4 * stride
    centre = (1 * stride, 2 * stride)
    anchor = [*(c - side for c in centre), *(c + side for c in centre)]
    limits = [96, 64, 96, 64]
    assert chosen.boxes[0].tolist() == [
        [min(max(a, 0), m) for a, m in zip(anchor, limits, strict=True)]
    ]
    assert chosen.sampled is None
    for wrong in ("p9:0:0", f"{level}:99:0", f"{level}:0:99", level, f"{level}:-1:0"):
        with pytest.raises(ValueError, match=f"no cell '{wrong}'.*{level} "):
            trace_cells(model, image, cells=[wrong])


def test_choose_cells() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 0, 29, 9], [5, 5, 5, 9]])
    scores = torch.tensor([0.5, 0.9, 0.2, 1.0])
    # Neither the empty one, best as it is, nor the second on the same place.
    assert choose_cells(boxes, scores, 5).tolist() == [1, 2]
    assert choose_cells(boxes, scores, 1).tolist() == [1]


def test_other_proposal_generators_are_refused(tmp_path: Path) -> None:
    model = build_model(toy_cfg(tmp_path, ["MODEL.DEVICE", "cpu"]))
    with pytest.raises(ValueError, match=r"MODEL\.PROPOSAL_GENERATOR\.NAME.*has RPN"):
        trace_cells(model, torch.zeros(3, 64, 64))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = crpn_cfg(tmp_path)
    torch.save({"model": lively(cfg).state_dict()}, tmp_path / "weights.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    picture = tmp_path / "picture.png"
    status = main(
        [
            *("--config-file", str(tmp_path / "config.yaml")),
            *("--input", str(tmp_path / "photo.png"), "--output", str(picture)),
            *("--num-cells", "2", "MODEL.WEIGHTS", str(tmp_path / "weights.pth")),
        ]
    )
    assert status == 0
    assert f"wrote {picture}" in capsys.readouterr().out
    width, height = Image.open(picture).size
    assert width > 3 * height / 2  # four panels side by side
