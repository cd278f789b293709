"""The ``d2-plugins`` command, ``python -m d2_plugins`` and the files in tools/."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from d2_plugins.cli import main as dispatcher
from d2_plugins.cli.main import COMMANDS, main
from tests.support.helpers import REPO

pytestmark = pytest.mark.slow

TOOLS = {
    "analyze_model": "analyze",
    "benchmark": "benchmark",
    "demo": "predict",
    "export_model": "export",
    "lazyconfig_train_net": "train-lazy",
    "plot_runs": "plot-runs",
    "prepare_datasets": "prepare",
    "run_demo": "demo",
    "train_net": "train",
    "visualize_attention": "visualize-attention",
    "visualize_data": "visualize-data",
    "visualize_proposals": "visualize-proposals",
}


def python(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(REPO), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=120, env=env
    )


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, text in COMMANDS.items():
        assert any(line.split() == [name, *text.split()] for line in lines)
        assert (REPO / "d2_plugins" / "cli" / f"{name.replace('-', '_')}.py").is_file()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "error: there is no command 'trian'. Nearest: train, "),
        (["visualise-data"], "Nearest: visualize-data, "),
        ([], "error: no command is given; 'd2-plugins --help' lists them"),
    ],
)
def test_unknown_commands_are_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_ctrl_c_while_a_command_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dispatcher, "import_module", interrupted)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("missing", ["cv2", "torch"])
def test_only_a_missing_opencv_is_a_mistake_of_the_user(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """pip installs all other dependencies."""

    def failing(name: str) -> None:
        raise ModuleNotFoundError(name=missing)

    monkeypatch.setattr(dispatcher, "import_module", failing)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    if missing == "cv2":
        assert main(["train"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: OpenCV is missing")
        assert error.count("\n") == 1
    else:
        with pytest.raises(ModuleNotFoundError):
            main(["train"])


@pytest.mark.parametrize("word", ["--help", "trian"])
def test_the_console_command_answers_without_importing_torch(word: str) -> None:
    code = (
        "import sys; sys.argv[1:] = sys.argv[1:2]; from d2_plugins_command import main;"
        "status = main(); assert not {'torch', 'd2_plugins'} & sys.modules.keys(); sys.exit(status)"
    )
    result = python("-c", code, word)
    assert result.returncode == (0 if word == "--help" else 2), result.stderr
    assert "train" in result.stdout + result.stderr


@pytest.mark.parametrize("start", [["-m", "d2_plugins"], [str(REPO / "d2_plugins_command.py")]])
def test_both_ways_to_start_a_command(start: list[str], tmp_path: Path) -> None:
    """Its stderr has no warnings of other libraries, and a line before they are imported."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    result = subprocess.run(
        [sys.executable, *start, "plot-runs", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=env | {"PYTHONPATH": str(REPO)},
    )
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "d2-plugins plot-runs: loading PyTorch and detectron2 ...",
        f"error: {tmp_path} has no metrics.json with an iteration in it",
    ]


def test_no_module_of_the_commands_ends_with_status_0_and_no_output() -> None:
    """``python -m d2_plugins.cli.train`` is refused, and so are all its siblings."""
    names = [path.stem for path in (REPO / "d2_plugins" / "cli").glob("*.py")]
    # runpy looks for a module the way `python -m` does; one process tries all of them.
    code = """
import runpy, sys
for name in sys.argv[1:]:
    for found in [n for n in sys.modules if n.startswith("d2_plugins.cli")]:
        del sys.modules[found]
    sys.argv[0] = "-m"
    try:
        runpy.run_module(f"d2_plugins.cli.{name}", run_name="__main__")
    except SystemExit as error:
        print(name, error.code)
"""
    result = python("-c", code, *names)
    assert sorted(result.stdout.splitlines()) == sorted(f"{name} 2" for name in names)
    assert result.stderr.count("run 'd2-plugins <command>' or 'python -m d2_plugins") == len(names)
    single = python("-m", "d2_plugins.cli.train")
    assert (single.returncode, single.stdout) == (2, "")
    assert single.stderr.startswith("error: run 'd2-plugins <command>'")


def test_tools_are_thin_and_executable() -> None:
    assert {path.stem for path in (REPO / "tools").glob("*.py")} == set(TOOLS)
    for tool, command in TOOLS.items():
        path = REPO / "tools" / f"{tool}.py"
        assert path.stat().st_mode & 0o111
        text = path.read_text()
        assert len(text.splitlines()) < 14
        assert f'main(["{command}", *sys.argv[1:]])' in text
        assert f"`d2-plugins {command}`" in text


def test_a_tool_gives_its_command_the_arguments_and_returns_its_status(tmp_path: Path) -> None:
    result = python(str(REPO / "tools" / "prepare_datasets.py"), "check", "--json", "gone.json")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "d2-plugins prepare: loading PyTorch and detectron2 ...",
        "error: check takes a registered name, a folder, or --json and --images",
    ]
