"""The commands' parsers: help, examples, and mistakes that argparse would let pass."""

import argparse
import errno
import importlib
import os
import shlex
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure

from d2_plugins.cli.main import COMMANDS, main
from d2_plugins.cli.parsers import exit_status, output_file, parse_train_args, save_figure
from d2_plugins.errors import UsageError
from d2_plugins.model_zoo import get_config_file


def module_of(command: str) -> ModuleType:
    return importlib.import_module(f"d2_plugins.cli.{command.replace('-', '_')}")


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_are_understood(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their arguments are parsed, and the configs they name exist."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert f"usage: d2-plugins {command} " in text
    lines = text.replace("\\\n", " ").splitlines()
    examples = [line.split("$ ", 1)[1] for line in lines if "$ " in line]
    assert examples
    monkeypatch.setattr(module_of(command), "exit_status", lambda run, args: 77)
    for example in examples:
        words = shlex.split(example)
        assert words[:2] == ["d2-plugins", command]
        if "..." in words:
            continue
        assert main(words[1:]) == 77
        if "--config-file" in words:
            config = words[words.index("--config-file") + 1]
            assert config == "output/config.yaml" or get_config_file(config)


def test_detectron2_arguments_and_opts_pass() -> None:
    args = parse_train_args(
        ["--config-file", "a.yaml", "--num-gpus", "0", "--resume", "SOLVER.MAX_ITER", "10"]
    )
    assert args.resume
    assert args.num_gpus == 0
    assert args.opts == ["SOLVER.MAX_ITER", "10"]
    assert args.dist_url == "auto"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["SOLVER.MAX_ITER", "1", "--resume"], "--resume stands after the KEY VALUE pairs"),
        (["SOLVER.MAX_ITER"], "odd number of words"),
        (["--num-gpus", "-1"], "--num-gpus is at least 0"),
        (["--num-machines", "2"], "needs --dist-url"),
        (["--machine-rank", "1"], "--machine-rank 1"),
        (["--dist-url", "tcp://localhost"], "--dist-url is 'tcp://localhost'; allowed: auto, tcp:"),
        (["--dist-url", "tcp://localhost:x"], "--dist-url is 'tcp://localhost:x'; allowed"),
        (["--dist-url", "tcp://localhost:99999"], "--dist-url is 'tcp://localhost:99999'; allowed"),
        (["--dist-url", "localhost:4000"], "--dist-url is 'localhost:4000'; allowed"),
        (
            ["--train-json", "a.json", "--train-images", "a", "--eval-only"],
            "needs --val-json",
        ),
        (["--data", "a", "--val-json", "a.json", "--val-images", "a"], "--data excludes"),
        (["--train-json", "a.json"], "--train-json and --train-images go together"),
    ],
)
def test_mistakes_are_named(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_train_args(argv)
    assert said in capsys.readouterr().err


def test_a_taken_port_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(SystemExit, match="2"):
            parse_train_args(["--num-gpus", "2", "--dist-url", url])
        assert f"--dist-url is '{url}', but its port: Address already" in capsys.readouterr().err
    assert parse_train_args(["--num-gpus", "2", "--dist-url", url]).dist_url == url


WRITERS = {
    "plot-runs": ["run", "--output"],
    "visualize-proposals": ["--config-file", "x.yaml", "--input", "x.jpg", "--output"],
    "visualize-attention": ["--config-file", "x.yaml", "--input", "x.jpg", "--output"],
    "export": ["--config-file", "x.yaml", "--input", "x.jpg", "--output"],
    "predict": ["--config-file", "x.yaml", "--input", "x.jpg", "--json"],
}


@pytest.mark.parametrize("command", WRITERS)
def test_outputs_that_cannot_be_written_are_refused_at_once(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    cases = {
        str(tmp_path): "is a folder; allowed: the name of a file",
        str(tmp_path / "file" / "a.png"): "file' is not a folder",
    }
    if command not in ("export", "predict"):
        cases[str(tmp_path / "a.xyz")] = "no picture can be saved as"
    for path, said in cases.items():
        with pytest.raises(SystemExit, match="2"):
            module_of(command).main([*WRITERS[command], path])
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write
    with pytest.raises(argparse.ArgumentTypeError, match=r"cannot be written to$"):
        output_file(str(tmp_path / "new" / "a.json"))


def test_a_picture_that_fails_leaves_nothing(tmp_path: Path) -> None:
    figure = Figure()
    figure.text(0, 0, r"$\frac{1}{$")
    with pytest.raises(ValueError, match="frac"):
        save_figure(figure, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("KEY is 3; allowed: 4"), 2, "error: KEY is 3; allowed: 4"),
        (PermissionError(errno.EACCES, "denied", "a.png"), 2, "error: [Errno 13] denied: 'a.png'"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_of_the_user_are_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: argparse.Namespace) -> int:
        raise error

    assert exit_status(run, argparse.Namespace()) == status
    assert capsys.readouterr().err == f"{line}\n"


def test_defects_of_the_program_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda args: 1 // 0, argparse.Namespace())
