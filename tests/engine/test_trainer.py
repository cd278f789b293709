"""The trainer: steps, mixed precision, clipping, and runs that resume to the same weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.utils.events import EventStorage
from torch import nn

from d2_plugins import get_cfg
from d2_plugins.engine import Trainer
from d2_plugins.engine.train_step import StepTrainer, amp_dtype
from d2_plugins.modeling.roi_heads import DoubleHeadBoxHead
from tests.support.toy import toy_cfg
from tests.support.training import train, weights


def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    toy_data: list[Any], tmp_path: Path
) -> None:
    opts = [*toy_data, "SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2]
    whole = weights(train(tmp_path / "whole", opts))
    train(tmp_path / "halves", opts, stop_after=4)
    # The second half evaluates and loads in other processes: neither may matter.
    more = ["TEST.EVAL_PERIOD", 5, "DATALOADER.NUM_WORKERS", 1]
    resumed = train(tmp_path / "halves", [*opts, *more])
    assert resumed.start_iter == 4
    for key, value in weights(resumed).items():
        assert torch.equal(value, whole[key]), key


def test_metrics_are_written(toy_data: list[Any], tmp_path: Path) -> None:
    train(tmp_path, [*toy_data, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1])
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert {"total_loss", "lr", "bbox/AP"} <= set().union(*lines)


def test_best_checkpoint_is_the_best_across_a_resume(
    toy_data: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([1.0, 3.0, 3.0, 2.0, 4.0])
    monkeypatch.setattr(
        Trainer, "test", classmethod(lambda *_: {"bbox": {"AP": next(values), "AP50": 0.0}})
    )
    opts = ["TEST.BEST_METRIC", "bbox/AP", "TEST.EVAL_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 1]
    opts = [*toy_data, *opts, "SOLVER.MAX_ITER", 5]

    def best() -> tuple[float, int, int]:
        state = torch.load(tmp_path / "model_best.pth", weights_only=True)
        hook = state["trainer"]["hooks"]["BestCheckpoint"]
        return hook["best_value"], hook["best_iter"], state["iteration"]

    train(tmp_path, opts, stop_after=3)
    assert best() == (3.0, 1, 1)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert train(tmp_path, opts).start_iter == 3
    assert best() == (4.0, 4, 4)


def test_recall_of_proposals_and_corrupted_images_are_evaluated_on_demand(
    toy_data: list[Any], tmp_path: Path
) -> None:
    opts = ["SOLVER.MAX_ITER", 1, "TEST.PROPOSAL_RECALL", True, "TEST.CORRUPTIONS", ["blur"]]
    trainer = Trainer(toy_cfg(tmp_path, [*toy_data, *opts]))
    results = Trainer.test(trainer.cfg, trainer.model)
    assert {"bbox", "box_proposals", "bbox_blur", "box_proposals_blur"} <= set(results)
    assert 0 < results["box_proposals"]["AR@100"] <= 100
    assert trainer.model.training


def test_augmented_evaluation_at_the_end_is_of_the_averaged_weights(
    toy_data: list[Any], tmp_path: Path
) -> None:
    aug = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.MAX_SIZE", 80]
    score = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.AUG.FLIP", False]
    opts = [*toy_data, *aug, *score, "SOLVER.MAX_ITER", 4, "SOLVER.EMA.ENABLED", True]
    trainer = Trainer(toy_cfg(tmp_path, opts))
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    assert results is not None
    # One view as in testing: what is evaluated is the same.
    assert results["bbox_TTA"] == pytest.approx(results["bbox"], nan_ok=True)
    written = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert written[-1]["bbox_TTA/AP"] == results["bbox_TTA"]["AP"]


def test_a_new_run_sets_the_old_metrics_aside(toy_data: list[Any], tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("old")
    train(tmp_path, [*toy_data, "SOLVER.MAX_ITER", 1])
    assert (tmp_path / "metrics.1.json").read_text() == "old"
    assert "old" not in (tmp_path / "metrics.json").read_text()


def test_bfloat16_step_on_cpu_is_near_the_float32_one(toy_data: list[Any], tmp_path: Path) -> None:
    def first_loss(enabled: bool) -> float:
        opts = [*toy_data, "SOLVER.MAX_ITER", 1, "SOLVER.AMP.ENABLED", enabled]
        trainer = train(tmp_path / str(enabled), opts)
        return float(trainer.storage.latest()["total_loss"][0])

    exact, rounded = first_loss(False), first_loss(True)
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("dtype", ["float16", "half"])
def test_precisions_that_a_cpu_cannot_train_are_refused(dtype: str, tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", dtype])
    with pytest.raises(ValueError, match=r"SOLVER\.AMP\.DTYPE"):
        amp_dtype(cfg)


def test_full_model_clip_scales_the_whole_gradient_to_the_norm() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))

        def forward(self, data: list[torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"loss": self.a @ data[0] + 12 * self.b.sum()}

    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = StepTrainer(model, [[torch.tensor([3.0, 4.0])]], optimizer, clip_norm=6.5)
    with EventStorage() as storage:
        step.run_step()
        assert storage.latest()["grad_norm"][0] == pytest.approx(13.0)
    # |(3, 4, 12)| = 13, clipped to 6.5: every component is halved, not each parameter to 6.5.
    assert torch.allclose(model.a, torch.tensor([-1.5, -2.0]))
    assert torch.allclose(model.b, torch.tensor([-6.0]))


def test_learning_rate_of_the_conv_head_is_scaled() -> None:
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.BIAS_LR_FACTOR = 2.0
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.5
    head = DoubleHeadBoxHead(ShapeSpec(channels=8, height=7, width=7), fc_dim=8, conv_dim=64)
    head.conv_head[1].requires_grad_(False)
    expected = _settings(Trainer.build_optimizer(cfg, head), head)
    cfg.MODEL.DOUBLE_HEAD.CONV_HEAD_LR_FACTOR = 3.0
    scaled = _settings(Trainer.build_optimizer(cfg, head), head)
    assert scaled.keys() == expected.keys()
    for name, (rate, decay) in expected.items():
        factor = 3 if name.startswith("conv_head.") else 1
        assert scaled[name] == (pytest.approx(rate * factor), decay)
    assert {rate for rate, _ in expected.values()} == {0.1, 0.2}


def _settings(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter by name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[p]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
