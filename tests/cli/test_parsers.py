"""The command lines of the tools that show something."""

import importlib
import runpy
import shlex
import sys

import pytest

from tests.support.helpers import REPO

TOOLS = ["demo", "plot_runs", "visualize_attention", "visualize_data", "visualize_proposals"]


@pytest.mark.parametrize("tool", TOOLS)
def test_help(
    tool: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = REPO / "tools" / f"{tool}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(path), run_name="__main__")
    text = capsys.readouterr().out
    assert f"usage: {tool}.py" in text
    assert f"$ tools/{tool}.py" in text
    assert path.stat().st_mode & 0o111


@pytest.mark.parametrize("tool", TOOLS)
def test_examples_of_the_help_are_understood(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their arguments are parsed."""
    module = importlib.import_module(f"d2_plugins.cli.{tool}")
    examples = module._EXAMPLE.replace("\\\n", " ").splitlines()
    commands = [line.split("$ ", 1)[1] for line in examples if "$ " in line]
    assert commands
    reached = []

    def stop(*args: object) -> int:
        reached.append(args)
        raise FileNotFoundError

    monkeypatch.setattr(module, "exit_status", stop)
    for command in commands:
        words = shlex.split(command)
        assert words[0] == f"tools/{tool}.py"
        with pytest.raises(FileNotFoundError):
            module.main(words[1:])
    assert len(reached) == len(commands)
