"""Progress bars, on a terminal that is simulated: what a person would see on the screen."""

import io
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from detectron2.utils.logger import setup_logger

from d2_plugins.progress import ProgressBar, with_progress
from tests.support.training import train


class Terminal(io.StringIO):
    """A screen without an end, on which lines are written over each other after a return."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[list[str]] = []  # the screen after each write

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        count = super().write(text)
        self.frames.append(self.lines())
        return count

    def lines(self) -> list[str]:
        lines, column = [""], 0
        for character in self.getvalue():
            if character == "\n":
                lines.append("")
            elif character != "\r":
                lines[-1] = lines[-1][:column].ljust(column) + character + lines[-1][column + 1 :]
            column = 0 if character in "\r\n" else column + 1
        return [line.rstrip() for line in lines]


Start = Callable[[TextIO, TextIO], None]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Takes stdout and stderr of a run, and sets up the loggers; log.txt is in tmp_path."""

    def start(stdout: TextIO, stderr: TextIO) -> None:
        # In the test itself: between its setup and its call, pytest sets both again.
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        setup_logger.cache_clear()
        for name in ("detectron2", "d2_plugins"):
            logging.getLogger(name).handlers.clear()
            setup_logger(str(tmp_path), name=name, color=False)

    yield start
    setup_logger.cache_clear()


def test_log_lines_stay_whole_above_the_bar(start: Start) -> None:
    terminal = Terminal()
    start(terminal, terminal)
    logger = logging.getLogger("d2_plugins.test")
    with ProgressBar(total=3, desc="training", mininterval=0) as bar:
        for number in range(3):
            bar.update()
            logger.info("line %d, which is longer than the bar: %s", number, "-" * 200)
            assert "training" in terminal.lines()[-1]
            assert f"{number + 1}/3" in terminal.lines()[-1]
    logger.info("after the bar")
    assert [line.partition(": ")[2] for line in terminal.lines()] == [
        *(f"line {number}, which is longer than the bar: {'-' * 200}" for number in range(3)),
        "after the bar",
        "",
    ]


def test_run_shows_bars_instead_of_lines_and_logs_the_same(
    toy_data: list[Any], tmp_path: Path, start: Start
) -> None:
    terminal = Terminal()
    start(terminal, terminal)
    train(tmp_path / "run", [*toy_data, "SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 2])
    last_lines = [frame[-1] for frame in terminal.frames]
    for start in ("training:", "evaluating toy:"):
        assert any(line.startswith(start) for line in last_lines), start
    assert any(line.startswith("training:") and "loss " in line for line in last_lines)
    screen = terminal.lines()
    assert not any(line.startswith(("training:", "evaluating toy:")) for line in screen)
    log = (tmp_path / "log.txt").read_text()
    hidden = [line for line in log.splitlines() if line.rstrip() not in screen]
    assert len(hidden) == 2  # the metrics of iteration 0 and of the last one
    assert all("iter: " in line and "total_loss: " in line for line in hidden)
    assert "\r" not in log


def test_only_lines_without_a_terminal(toy_data: list[Any], tmp_path: Path, start: Start) -> None:
    stdout, stderr = Terminal(), io.StringIO()  # as with 2> file
    start(stdout, stderr)
    train(tmp_path / "run", [*toy_data, "SOLVER.MAX_ITER", 1])
    assert "training: " not in stdout.getvalue().replace("in training: ", "")
    assert "it/s" not in stdout.getvalue() + stderr.getvalue()
    assert any("iter: 0  total_loss: " in line for line in stdout.lines())
    assert with_progress([1, 2], "evaluating") == [1, 2]


def test_only_the_main_process_shows_bars(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    start(terminal, terminal)
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: 1)
    with ProgressBar(total=3) as bar:
        bar.update()
    assert list(with_progress([1, 2], "evaluating")) == [1, 2]
    assert terminal.getvalue() == ""
