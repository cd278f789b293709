"""The average of the weights: against the written-out sum, and as what a run tests and saves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from d2_plugins.engine import Trainer
from d2_plugins.engine.hooks import EMAHook, build_ema
from tests.support.toy import toy_cfg
from tests.support.training import train, weights

EMA = ["SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.75, "SOLVER.EMA.WARMUP", False]


class Clock:
    """As much of a trainer as a hook asks for."""

    iter = 0


def averages(decay: float, *, warmup: bool, values: list[float]) -> list[float]:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(1))
    model.register_buffer("count", torch.zeros((), dtype=torch.long))
    hook, clock = EMAHook(model, decay=decay, warmup=warmup), Clock()
    hook.trainer = clock  # type: ignore[assignment]
    seen = []
    for clock.iter, value in enumerate(values):
        model.weight.data.fill_(value)
        model.count += 1
        hook.after_step()
        seen.append(float(hook.averaged.weight))
        assert hook.averaged.count == clock.iter + 1  # integers are copied
    return seen


def test_average_is_the_weighted_sum_of_the_past() -> None:
    values = [3.0, -1.0, 4.0, 1.0, -5.0]
    d = 0.75
    # The first weights count in full, not the random ones before them.
    expected = [
        d**i * values[0] + sum((1 - d) * d ** (i - j) * values[j] for j in range(1, i + 1))
        for i in range(5)
    ]
    assert averages(d, warmup=False, values=values) == pytest.approx(expected)


def test_warmup_grows_the_decay_up_to_its_value() -> None:
    values = [0.0] * 60 + [1.0]
    before = averages(0.9, warmup=True, values=values)
    # At iteration 60 the decay is min(0.9, 1 - 61 ** (-2 / 3) = 0.935).
    assert before[-1] == pytest.approx(0.1)
    early = averages(0.9, warmup=True, values=[0.0, 0.0, 1.0])
    assert early[-1] == pytest.approx(3 ** (-2 / 3))


class Record(HookBase):
    """The weights after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def after_step(self) -> None:
        model = self.trainer._trainer.model
        self.seen.append({k: v.clone() for k, v in model.state_dict().items()})


def test_run_evaluates_and_saves_the_average_and_trains_on_as_without(
    toy_data: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluated: list[dict[str, Tensor]] = []

    def test(cfg: Any, model: nn.Module) -> dict[str, Any]:
        evaluated.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"bbox": {"AP": 1.0}}

    monkeypatch.setattr(Trainer, "test", staticmethod(test))
    opts = [*toy_data, "SOLVER.MAX_ITER", 3, "TEST.BEST_METRIC", "bbox/AP"]
    torch.manual_seed(0)
    trainer = Trainer(toy_cfg(tmp_path / "ema", [*opts, *EMA]))
    record = Record()
    trainer.register_hooks([record])
    trainer.resume_or_load(resume=False)
    trainer.train()
    first, second, third = record.seen
    saved = torch.load(tmp_path / "ema" / "model_final.pth", weights_only=True)
    best = torch.load(tmp_path / "ema" / "model_best.pth", weights_only=True)
    plain = weights(train(tmp_path / "plain", opts))
    moved = 0
    for name, value in third.items():
        assert torch.equal(value, plain[name]), name
        if value.is_floating_point():
            average = 0.75**2 * first[name] + 0.25 * 0.75 * second[name] + 0.25 * value
            assert torch.allclose(saved["model"][name], average, atol=1e-6), name
            moved += not torch.equal(average, value)
        assert torch.equal(saved["model"][name], evaluated[0][name])
        assert torch.equal(saved["model"][name], best["model"][name])
    assert moved > 20


def test_resumed_run_continues_weights_and_average(
    toy_data: list[Any],
    tmp_path: Path,
) -> None:
    opts = [*toy_data, *EMA, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2]
    train(tmp_path / "whole", opts)
    train(tmp_path / "halves", opts, stop_after=2)
    assert train(tmp_path / "halves", opts).start_iter == 2

    def final(run: str) -> dict[str, Any]:
        return torch.load(tmp_path / run / "model_final.pth", weights_only=True)

    whole, halves = final("whole"), final("halves")
    for state in ("model", "trained"):
        a, b = (run["trainer"]["hooks"]["EMAHook"] | run for run in (whole, halves))
        assert all(torch.equal(a[state][name], b[state][name]) for name in a[state])


def test_weights_to_start_from_are_those_that_are_trained(
    toy_data: list[Any],
    tmp_path: Path,
) -> None:
    opts = [*toy_data, "SOLVER.BASE_LR", 0.0, "SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.MAX_ITER", 1]
    source = weights(train(tmp_path / "source", opts))
    start = ["MODEL.WEIGHTS", str(tmp_path / "source" / "model_final.pth")]
    torch.manual_seed(1)  # other random weights
    trainer = Trainer(toy_cfg(tmp_path / "run", [*opts, *EMA, *start]))
    trainer.resume_or_load(resume=False)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, source[name]), name


@pytest.mark.parametrize(
    ("opts", "key"),
    [
        (["SOLVER.EMA.DECAY", 1.0], r"SOLVER\.EMA\.DECAY is 1\.0"),
        (["TEST.PRECISE_BN.ENABLED", True], r"TEST\.PRECISE_BN\.ENABLED"),
    ],
)
def test_what_does_not_go_together_is_refused(opts: list[Any], key: str, tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, [*EMA, *opts])
    with pytest.raises(ValueError, match=key):
        build_ema(cfg, nn.Linear(1, 1))
