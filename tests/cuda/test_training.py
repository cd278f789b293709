"""The trainer and the evaluations on the simulated device."""

from pathlib import Path
from typing import Any

import pytest
import torch

from d2_plugins.data import register_coco_json
from d2_plugins.engine import Trainer
from tests.support.simulated_device import SimulatedCuda
from tests.support.toy import toy_cfg, write_toy_coco

pytestmark = pytest.mark.slow

PARTS = (
    *("MODEL.PROPOSAL_GENERATOR.NAME", "CascadeRPN"),
    *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
    *("MODEL.ROI_HEADS.NAME", "DoubleHeadROIHeads", "MODEL.DOUBLE_HEAD.FC_DIM", 16),
    *("MODEL.DOUBLE_HEAD.CONV_DIM", 16, "MODEL.DOUBLE_HEAD.NUM_CONV", 1),
    *("MODEL.DOUBLE_HEAD.LAMBDA_CONV", 0.8, "MODEL.INVERTED_ATTENTION.ENABLED", True),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 10),
)
RUN = (
    *("SOLVER.AMP.ENABLED", True, "SOLVER.EMA.ENABLED", True, "SOLVER.CHECKPOINT_PERIOD", 1),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"),
    *("TEST.EVAL_PERIOD", 0, "SEED", 1),
)


@pytest.fixture
def few_images(tmp_path: Path, catalogs: None) -> list[Any]:
    json_file, images = write_toy_coco(tmp_path, num_images=2)
    register_coco_json("toy_cuda", json_file, images)
    return ["DATASETS.TRAIN", ("toy_cuda",), "DATASETS.TEST", ("toy_cuda",)]


def make_trainer(folder: Path, *opts: object) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(toy_cfg(folder, [*opts, "MODEL.DEVICE", "cuda"]))
    trainer.resume_or_load(resume=True)
    return trainer


def test_a_resumed_run_continues_weights_average_and_scaler(
    gpu: SimulatedCuda, few_images: list[Any], tmp_path: Path
) -> None:
    opts = [*few_images, *RUN, "DATASETS.TEST", (), "SOLVER.MAX_ITER", 2]
    whole = make_trainer(tmp_path / "whole", *opts)
    whole.train()
    half = make_trainer(tmp_path / "halves", *opts)
    half.max_iter = 1
    half.train()
    resumed = make_trainer(tmp_path / "halves", *opts)
    assert resumed.start_iter == 1
    assert resumed._trainer.grad_scaler.is_enabled()  # "auto" is float16 on CUDA
    resumed.train()
    assert next(resumed.model.parameters()).is_cuda
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name].cpu(), value.cpu()), name
    average, expected = (t._ema.averaged.state_dict() for t in (resumed, whole))
    assert all(torch.equal(average[name].cpu(), expected[name].cpu()) for name in expected)
    scales = [trainer._trainer.grad_scaler.get_scale() for trainer in (resumed, whole)]
    assert scales[0] == scales[1]


def test_evaluation_variants(gpu: SimulatedCuda, few_images: list[Any], tmp_path: Path) -> None:
    """Proposal recall, corrupted images and test-time augmentation, with masks."""
    trainer = make_trainer(
        tmp_path,
        *PARTS,
        *(*few_images, "MODEL.MASK_ON", True, "TEST.PROPOSAL_RECALL", True),
        *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
        *("TEST.CORRUPTIONS", ["occlusion", "blur", "noise"], "TEST.AUG.ENABLED", True),
        *("TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.MAX_SIZE", 80, "SOLVER.MAX_ITER", 1),
    )
    results = trainer.train()
    assert {"bbox", "segm", "box_proposals"} <= set(results)
    assert {"bbox_occlusion", "bbox_blur", "bbox_noise"} <= set(results)
    assert any("TTA" in name for name in results)
