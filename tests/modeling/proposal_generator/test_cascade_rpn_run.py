"""Cascade RPN through the trainer: alone with its recall, then its proposals for a Fast R-CNN."""

import math
import pickle
from pathlib import Path
from typing import Any

import torch

from d2_plugins.engine import Trainer
from tests.support.toy import toy_cfg

# The demo's strides, with anchors of 8 cells.
CRPN = (
    *("MODEL.PROPOSAL_GENERATOR.NAME", "CascadeRPN"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
    *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
)


def run(folder: Path, opts: list[Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    trainer = Trainer(toy_cfg(folder, ["SOLVER.MAX_ITER", 3, *opts]))
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    assert results is not None
    return results


def test_alone_and_as_proposals_of_a_fast_rcnn(toy_data: list[Any], tmp_path: Path) -> None:
    alone = ["MODEL.META_ARCHITECTURE", "ProposalNetwork", "MODEL.RPN.POST_NMS_TOPK_TEST", 50]
    results = run(tmp_path / "crpn", [*toy_data, *CRPN, *alone])
    assert 0 < results["box_proposals"]["AR@100"] <= 100

    saved = tmp_path / "crpn" / "inference" / toy_data[1][0] / "box_proposals.pkl"
    # Our own file of the run above.
    proposals = pickle.loads(saved.read_bytes())  # noqa: S301
    assert sorted(proposals["ids"]) == list(range(8))
    assert all(0 < len(boxes) <= 50 for boxes in proposals["boxes"])
    fast = [
        *("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.LOAD_PROPOSALS", True),
        *("DATASETS.PROPOSAL_FILES_TRAIN", (str(saved),)),
        *("DATASETS.PROPOSAL_FILES_TEST", (str(saved),)),
    ]
    assert "bbox" in run(tmp_path / "fast", [*toy_data, *fast])


def test_recall_per_stage_in_a_detector(toy_data: list[Any], tmp_path: Path) -> None:
    results = run(tmp_path / "run", [*toy_data, *CRPN, "TEST.PROPOSAL_RECALL", True])
    stages = ["box_proposals_anchors", "box_proposals_stage1", "box_proposals_stage2"]
    assert {"bbox", "box_proposals", *stages} <= set(results)
    for stage in stages:
        assert 0 <= results[stage]["AR@100"] <= 100
    # The last stage's are those the detector worked with.
    for key, value in results["box_proposals_stage2"].items():
        other = results["box_proposals"][key]
        assert value == other or (math.isnan(value) and math.isnan(other))
