"""Run documented commands and Python blocks in the current process, made small by the rules.

``python -m tests.docs.commands WORD ...`` runs one command. Nothing of d2_plugins is imported at
the top, so that a block that forgets to import a module of it fails.
"""

import argparse
import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]


def run_command(words: Sequence[str]) -> int:
    """Run a command as the rules change it, and return its exit status (0 if it is not run)."""
    from tests.docs import rules

    if list(words[:3]) == ["python", "-m", "d2_plugins"]:
        words = ["d2-plugins", *words[3:]]
    command = shlex.join(words)
    if rules.why_not_run(command):
        if words[0] == "d2-plugins":
            return _parse_only(words)
        return 0
    words = shlex.split(rules.small(command))
    if words[0] == "d2-plugins":
        _use_small_models()
        sys.argv = list(words)
        runpy.run_module("d2_plugins", run_name="__main__")
    elif words[0].startswith(("tools/", "dev/")):
        _use_small_models()
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")
    elif words[:3] == ["python", "-m", "pytest"]:
        os.chdir(REPO)
        return int(pytest.main([*words[3:]]))
    elif words[:2] == ["python", "-c"]:
        run_python(words[2])
    elif words[0] == "make":
        return run_command(shlex.split(_make(words)))
    else:
        raise SystemExit(f"'{command}' is not in NOT_RUN of tests/docs/rules.py")
    return 0


def _make(words: list[str]) -> str:
    """Return the command that make would run.

    ``make test`` sets variables for the makes below it, which then print their folder.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.check_output(words, text=True, env=env)


def run_python(text: str) -> None:
    """Run a Python block."""
    _use_small_models()
    exec(compile(text, "<block>", "exec"), {"__name__": "__main__"})  # noqa: S102


def run_in_folder(job: Callable[[Any], int | None], argument: Any, folder: Path) -> None:
    """Call ``job(argument)`` in a folder, append its output to ``folder/log``, and exit.

    Meant for a process of its own, which has the exit status of the job.
    """
    import pytest_socket
    import torch

    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    os.environ.update(environment(folder))
    torch.set_num_threads(1)
    pytest_socket.socket_allow_hosts(["127.0.0.1", "localhost", "::1"], allow_unix_socket=True)
    sys.exit(job(argument))


def environment(folder: Path) -> dict[str, str]:
    """Return the environment variables of a documented command."""
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        "PATH": path,
        "PYTHONPATH": str(REPO),
        "CUDA_VISIBLE_DEVICES": "",
        "DETECTRON2_DATASETS": "datasets",
        "OMP_NUM_THREADS": "1",
    }


def _parse_only(words: Sequence[str]) -> int:
    """Parse a command line with the parser of its command; return the exit status."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parse(self, *args, **kwargs)
        raise _ParsedError

    argparse.ArgumentParser.parse_args = parse_and_stop  # type: ignore[method-assign,assignment]
    sys.argv = list(words)
    try:
        runpy.run_module("d2_plugins", run_name="__main__")
    except _ParsedError:
        return 0
    return 1


class _ParsedError(Exception):
    """The command line is parsed."""


def _use_small_models() -> None:
    """Shrink the configs of the zoo, and write the reader's weights when they are loaded."""
    import torch
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import CfgNode

    from d2_plugins import model_zoo
    from d2_plugins.checkpoint import PluginCheckpointer
    from tests.docs import rules

    get_config = model_zoo.get_config

    def get_small_config(*args: Any, **kwargs: Any) -> Any:
        cfg = get_config(*args, **kwargs)
        if isinstance(cfg, CfgNode):  # a LazyConfig keeps its size
            cfg.merge_from_list(rules.SMALL)
        return cfg

    def provide_before(load: Callable[..., Any]) -> Callable[..., Any]:
        def provide_and_load(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
            if path in rules.READERS_WEIGHTS and not Path(path).exists():
                torch.save({"model": self.model.state_dict()}, path)
            return load(self, path, *args, **kwargs)

        return provide_and_load

    model_zoo.get_config = get_small_config
    for checkpointer in (DetectionCheckpointer, PluginCheckpointer):
        checkpointer.load = provide_before(checkpointer.load)  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:]))
