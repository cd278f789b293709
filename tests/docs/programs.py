"""The programs that documented commands call, in one process that has imported torch once.

``python -m tests.docs.programs SOCKET`` listens on a socket; the programs in a sandbox's ``bin``
are copies of :data:`CLIENT`, which pass their command line, environment and streams on to it and
leave with the exit status that comes back. Each command runs in a fork, so that it may register,
patch and leave behind what it likes. d2_plugins is imported in the fork: a module of it that a
snippet forgets to import is missing.
"""

import argparse
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import pytest_socket

from tests.docs import rules

SOCKET_VARIABLE = "DOCS_PROGRAMS"
LOG_VARIABLE = "DOCS_LOG"
PROGRAMS = ("python", "make", "pip", "conda")

CLIENT = f"""#!{sys.executable} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["{SOCKET_VARIABLE}"])
    socket.send_fds(server, [b"-"], [0, 1, 2])
    request = {{"argv": sys.argv, "folder": os.getcwd(), "env": dict(os.environ)}}
    server.sendall(json.dumps(request).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(8) or 1))
"""


class _ParsedError(Exception):
    """Ends a tool after its command line is parsed."""


def serve(address: str) -> None:
    """Answer requests until standard input ends."""
    _import_libraries()
    # No command may download anything.
    pytest_socket.socket_allow_hosts(["127.0.0.1", "localhost", "::1"], allow_unix_socket=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            if os.fork() == 0:
                _answer(connection)
            connection.close()


def _import_libraries() -> None:
    import cv2  # noqa: F401
    import detectron2.engine
    import detectron2.evaluation  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import timm  # noqa: F401


def _answer(connection: socket.socket) -> NoReturn:
    """Run what a client asks for, in this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile("rb").read())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["env"])
    status = _status_of(lambda: run(request["argv"]))
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(status).encode())
    os._exit(0)


def run(argv: Sequence[str]) -> int:
    """Run a command, scaled down by the rules.

    Returns:
        Its exit status, 0 for what is not run.
    """
    command = _documented(argv)
    reason = rules.why_not_run(command)
    words = shlex.split(command if reason else rules.small(command))
    if reason is None:
        status = _run(words)
    elif words[0].startswith("tools/"):
        status = _parse_only(words)
    else:
        status = 0
    entry = {"command": command, "run": shlex.join(words), "not run": reason, "status": status}
    with open(os.environ[LOG_VARIABLE], "a") as log:
        log.write(json.dumps(entry) + "\n")
    return status


def _documented(argv: Sequence[str]) -> str:
    """The command line as the rules know it."""
    program, *arguments = argv
    name = "dev/install.sh" if program.endswith("install.sh") else Path(program).name
    if name == "python" and arguments and arguments[0].startswith("tools/"):
        return shlex.join(arguments)
    return shlex.join([name, *arguments])


def _run(words: Sequence[str]) -> int:
    if words[0] == "make":
        behind_ours = os.environ["PATH"].partition(":")[2]
        return subprocess.call([shutil.which("make", path=behind_ours) or "make", *words[1:]])
    if words[0].startswith("tools/"):
        return _run_file(words[0], words[1:])
    if words[:2] == ["python", "-c"] and "DETECTRON2_ENV_MODULE" not in os.environ:
        file = Path(f"{os.environ[LOG_VARIABLE]}-{os.getpid()}.py")
        file.write_text(words[2])
        return _run_file(str(file), words[3:])
    if words[:3] == ["python", "-m", "pytest"]:
        return _run_pytest(words[3:])
    if words[0] == "python":
        return subprocess.call([sys.executable, *words[1:]])
    print(f"'{shlex.join(words)}' is not in NOT_RUN of tests/docs/rules.py", file=sys.stderr)
    return 1


def _run_file(path: str, arguments: Sequence[str]) -> int:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    _shrink_zoo()
    _provide_weights()
    sys.argv = [path, *arguments]
    return _status_of(lambda: runpy.run_path(path, run_name="__main__"))


def _run_pytest(arguments: Sequence[str]) -> int:
    """On the tests of the sandbox: those of this checkout are imported here."""
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    sys.path.insert(0, os.getcwd())
    return int(pytest.main([*arguments]))


def _parse_only(words: Sequence[str]) -> int:
    """Have a tool parse its command line with its own parser."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> NoReturn:
        parse(self, *args, **kwargs)
        raise _ParsedError

    argparse.ArgumentParser.parse_args = parse_and_stop  # type: ignore[method-assign]
    sys.argv = list(words)
    try:
        status = _status_of(lambda: runpy.run_path(words[0], run_name="__main__"))
    except _ParsedError:
        return 0
    return status or 1  # it did not parse at all


def _status_of(job: Callable[[], object]) -> int:
    """The exit status that Python would leave with."""
    try:
        result = job()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except _ParsedError:
        raise
    except BaseException:
        traceback.print_exc()
        return 1
    return result if isinstance(result, int) else 0


def _shrink_zoo() -> None:
    """What Python snippets get from the zoo is as small as what the tools are told to build."""
    from detectron2.config import CfgNode

    from d2_plugins import model_zoo

    get_config = model_zoo.get_config

    def get_small_config(*args: Any, **kwargs: Any) -> Any:
        cfg = get_config(*args, **kwargs)
        if isinstance(cfg, CfgNode):  # a LazyConfig is of full size
            cfg.merge_from_list(rules.SMALL)
        return cfg

    model_zoo.get_config = get_small_config


def _provide_weights() -> None:
    import torch
    from detectron2.checkpoint import DetectionCheckpointer

    from d2_plugins.checkpoint import PluginCheckpointer

    def provide_before(load: Callable[..., Any]) -> Callable[..., Any]:
        def provide_and_load(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
            if path in rules.READERS_WEIGHTS and not Path(path).exists():
                torch.save({"model": self.model.state_dict()}, path)
            return load(self, path, *args, **kwargs)

        return provide_and_load

    for checkpointer in (DetectionCheckpointer, PluginCheckpointer):
        checkpointer.load = provide_before(checkpointer.load)  # type: ignore[method-assign]


if __name__ == "__main__":
    serve(sys.argv[1])
    os._exit(0)  # at once: taking torch down lasts seconds
