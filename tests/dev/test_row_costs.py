"""Costs of the rows of a comparison, on networks of a few channels."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from d2_plugins import model_zoo
from dev.row_costs import row_costs
from dev.table_runs import runs_of
from dev.trained_tables import Row, Table

SMALL = (
    *("MODEL.CSPNET.WIDTH_MULTIPLIER", "0.125", "MODEL.FPN.OUT_CHANNELS", "8"),
    *("MODEL.DOUBLE_HEAD.FC_DIM", "8", "MODEL.DOUBLE_HEAD.CONV_DIM", "8"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "8", "MODEL.RPN.POST_NMS_TOPK_TEST", "10"),
    *("SOLVER.IMS_PER_BATCH", "1", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"),
)
KEY = "MODEL.DOUBLE_HEAD.CONV_HEAD_MIN_SCORE"
TABLE = Table(
    title="Costs",
    rows=(
        Row("plain", "Demo/faster_rcnn.yaml"),
        Row("all RoIs", "Demo/double_head.yaml", (KEY, "-1.0")),
        Row("no RoI", "Demo/double_head.yaml", (KEY, "1.0"), weights_of="all RoIs"),
    ),
    metrics={},
    opts=SMALL,
    seeds=(4, 5),
)


def test_costs_are_ratios_to_the_first_row_with_the_share_of_the_conv_head(tmp_path: Path) -> None:
    for run in runs_of(TABLE):
        if run.seed == 4 and run.row.weights_of is None:
            cfg = model_zoo.get_config(run.row.config)
            cfg.merge_from_list(list(run.opts))
            (tmp_path / run.name).mkdir()
            weights = build_model(cfg).state_dict()
            torch.save({"model": weights}, tmp_path / run.name / "model_final.pth")
    costs = row_costs(TABLE, tmp_path, repeats=1, num_images=1)
    assert costs["plain"] == {"train": 1.0, "inference": 1.0}
    assert costs["all RoIs"]["conv_head_share"] == 1.0
    assert costs["no RoI"]["conv_head_share"] == 0.0
    assert all(cost["train"] > 0 and cost["inference"] > 0 for cost in costs.values())


def test_weights_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plain_seed4.model_final\.pth"):
        row_costs(TABLE, tmp_path)
