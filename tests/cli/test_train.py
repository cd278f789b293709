"""What a training leaves behind, and mistakes that show up only when it starts."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from d2_plugins.cli.train import main
from tests.support.toy import TOY_OPTS

CONFIG = ("--config-file", "Demo/Base-shapes.yaml", "--num-gpus", "0")


def train(folder: Path, data: list[Any], *opts: str) -> int:
    pairs = [*TOY_OPTS, *(str(word) for word in data), "SOLVER.MAX_ITER", "2"]
    return main([*CONFIG, *pairs, "OUTPUT_DIR", str(folder), *opts])


def test_report_is_written_after_training(toy_data: list[Any], tmp_path: Path) -> None:
    assert train(tmp_path / "with", toy_data, "TEST.REPORT", "True") == 0
    report = (tmp_path / "with" / "report.html").read_text()
    assert "2 of 2" in report
    assert "MAX_ITER" in report
    assert train(tmp_path / "without", toy_data) == 0
    assert not (tmp_path / "without" / "report.html").exists()


def test_a_report_that_fails_does_not_lose_the_run(toy_data: list[Any], tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    assert train(tmp_path, toy_data, "TEST.REPORT", "True") == 0
    assert "The report could not be written" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "model_final.pth").exists()


@pytest.mark.parametrize("mode", [(), ("--eval-only",)])
def test_weights_that_do_not_fit_are_one_line(
    mode: tuple[str, ...],
    toy_data: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save({"model": {"other.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    for name, said in (("none.pth", "there is no file"), ("other.pth", "entries of the model")):
        words = [str(word) for word in toy_data]
        weights = ["MODEL.WEIGHTS", str(tmp_path / name), "OUTPUT_DIR", str(tmp_path / "out")]
        assert main([*CONFIG, *mode, *TOY_OPTS, *words, *weights]) == 2
        error = capsys.readouterr().err.splitlines()
        assert [line for line in error if line.startswith("error: MODEL.WEIGHTS: ")], error
        assert any(said in line for line in error)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (("MODEL.ATTENTION.NAME", "ecca"), "ecca"),
        (("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"), "SOLVER.AMP.DTYPE"),
        (("SOLVER.EMA.ENABLED", "True", "SOLVER.EMA.DECAY", "1.5"), "SOLVER.EMA.DECAY"),
    ],
)
def test_values_that_components_refuse_are_one_line(
    pair: tuple[str, ...],
    said: str,
    toy_data: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(tmp_path, toy_data, *pair) == 2
    assert re.search(rf"^error: .*{said}", capsys.readouterr().err, re.MULTILINE)


def test_random_weights_are_not_evaluated_without_a_word(
    toy_data: list[Any], tmp_path: Path
) -> None:
    words = [*TOY_OPTS, *(str(word) for word in toy_data), "OUTPUT_DIR", str(tmp_path)]
    assert main([*CONFIG, "--eval-only", *words]) == 0
    assert "random weights" in (tmp_path / "log.txt").read_text()
