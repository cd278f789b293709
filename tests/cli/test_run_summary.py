"""The summary of a run, and the commands that use it: paths are the run's, and can be typed."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from d2_plugins.cli.parsers import parse_train_args
from d2_plugins.cli.run_summary import describe_run, next_steps
from tests.support.toy import toy_cfg


def lines(text: str) -> dict[str, str]:
    """The facts of a table by name; the columns are separated by two spaces."""
    pairs = [line.strip().split("  ", 1) for line in text.splitlines()[1:]]
    return {name: fact.strip() for name, fact in pairs}


def test_next_steps(tmp_path: Path, toy_data: list[Any]) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    cfg = toy_cfg(folder, [*toy_data, "SOLVER.MAX_ITER", 20])
    assert lines(next_steps(parse_train_args([]), cfg)) == {}, "nothing without a checkpoint"
    (folder / "model_final.pth").touch()
    steps = lines(next_steps(parse_train_args([]), cfg))
    assert list(steps) == ["detect", "export", "publish", "train longer"]
    image = str(tmp_path / "images" / "000.png")
    config = ["--config-file", f"{folder}/config.yaml"]
    assert shlex.split(steps["detect"]) == [
        *("d2-plugins", "predict", *config, "--input", image),
        *("--output", f"{folder}/detected", "MODEL.WEIGHTS", f"{folder}/model_final.pth"),
    ]
    assert shlex.split(steps["export"])[:6] == ["d2-plugins", "export", *config, "--input", image]
    assert shlex.split(steps["train longer"]) == [
        *("d2-plugins", "train", *config, "--resume", "SOLVER.MAX_ITER", "40")
    ]
    (folder / "model_best.pth").touch()
    (folder / "report.html").touch()
    cfg.DATASETS.TEST = ()
    steps = lines(next_steps(parse_train_args(["--num-gpus", "2"]), cfg))
    assert steps["see the report"] == f"{folder}/report.html"
    assert shlex.split(steps["detect"])[-1] == f"{folder}/model_best.pth"
    assert "--input photo.jpg" in steps["detect"]
    assert "--num-gpus 2 --resume" in steps["train longer"]


@pytest.mark.parametrize("argv", [[], ["--eval-only", "--config-file", "a.yaml"]])
def test_summary(argv: list[str], tmp_path: Path, toy_data: list[Any]) -> None:
    cfg = toy_cfg(tmp_path, [*toy_data, "SOLVER.MAX_ITER", 20, "MODEL.WEIGHTS", ""])
    args = parse_train_args(["--config-file", "b.yaml", *argv, "SEED", "3"])
    model = nn.Linear(999, 1000)  # a million parameters
    if argv:
        facts = lines(describe_run(args, cfg, model))
        assert facts["config"] == "a.yaml, SEED 3"
        assert not {"train on", "iterations", "to continue"} & facts.keys()
    else:
        text = describe_run(args, cfg, model, loader=range(8), start=4)
        assert text.startswith("Training:\n")
        facts = lines(text)
        assert facts["train on"] == "toy"
        assert facts["iterations"] == "4 to 20, 2 images each; learning rate 0.02"
    assert facts["evaluate on"] == "toy: 8 images"
    assert facts["weights"] == "random"
    assert facts["model"].endswith("; 1.0 million parameters")
    cfg.DATASETS.TEST = ()
    assert lines(describe_run(args, cfg, model))["evaluate on"] == "nothing"
