"""The command line of the LazyConfig tool: what it hands on, and which mistakes it names."""

import sys
from typing import Any

import pytest
import torch

from d2_plugins import model_zoo
from d2_plugins.cli.train_lazy import main
from d2_plugins.engine import launch
from d2_plugins.engine.lazy import load_lazy_config
from d2_plugins.errors import UsageError

NAME = "lazy/csp_cascade.py"


def test_no_gpu_asked_for_is_the_cpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module = sys.modules[launch.__module__]
    monkeypatch.setattr(module, "launch", lambda *_, **options: launched.update(options))
    assert main(["--config-file", NAME, "--num-gpus", "0"]) == 0
    assert launched["use_cpu"] is True
    assert launched["dist_url"] == "auto", "two runs may share a machine"
    assert main(["--config-file", NAME, "--num-gpus", "1"]) == 0
    assert launched["use_cpu"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.max_iter=5", "--resume"], "--resume stands after"),
        (["--num-gpus", "-1"], "--num-gpus is at least 0"),
        (["--num-machines", "2"], "--num-machines above 1 needs --dist-url"),
    ],
)
def test_options_that_would_be_ignored_or_hang_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--config-file", NAME, *words])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("train.max_itr=5", "Nearest: train.max_iter"),
        ("optimiser.lr=0.1", "Nearest: "),
        ("trian={}", "Nearest: train"),
        ("train.max_iter.x=5", "Nearest: none"),
        ("dataloader.trian.num_workers=0", "no config key 'dataloader.trian.num_workers'"),
        ("train.max_iter", "missing EQUAL"),
        ("model.pixel_mean.7=1", "index out of range"),
    ],
)
def test_keys_that_nothing_reads_are_refused(override: str, near: str) -> None:
    with pytest.raises(UsageError, match=near):
        load_lazy_config(NAME, [override])


def test_arguments_that_the_config_leaves_at_their_defaults_can_be_given() -> None:
    overrides = [
        "model.backbone.bottom_up.leaky_slope=0.1",
        "model.proposal_generator.stages.0.dilation=2",
        "dataloader.train.mapper.augmentations.1.prob=0.3",
        "model.pixel_mean.0=1.5",
        "+train.note=mine",
        "model.roi_heads.box_predictor.loss_weight.loss_cls=2.0",
    ]
    cfg = load_lazy_config(NAME, overrides)
    assert cfg.model.backbone.bottom_up.leaky_slope == 0.1
    assert cfg.model.proposal_generator.stages[0].dilation == 2
    assert cfg.dataloader.train.mapper.augmentations[1].prob == 0.3
    assert cfg.model.pixel_mean[0] == 1.5
    assert cfg.train.note == "mine"
    assert cfg.model.roi_heads.box_predictor.loss_weight == {"loss_cls": 2.0, "loss_box_reg": 1.0}


def test_a_yaml_is_not_a_lazy_config() -> None:
    with pytest.raises(UsageError, match=r"'csp_cascade\.yaml' is not a LazyConfig"):
        load_lazy_config("csp_cascade.yaml", [])
    with pytest.raises(UsageError, match=r"Nearest: .*lazy/csp_cascade\.py"):
        load_lazy_config("lazy/csp_cascad.py", [])
    assert set(model_zoo.get_config(NAME)) >= {"model", "optimizer", "lr_multiplier", "train"}
