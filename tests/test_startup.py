"""Messages of other libraries are hidden by the commands, each by its text; others are shown."""

import inspect
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.fx._symbolic_trace import is_fx_tracing_warning
from torch.nn.parallel import distributed
from torch.utils import cpp_extension

from d2_plugins.startup import _MESSAGES, _WARNINGS, announce, hide_messages
from tests.support.helpers import REPO
from tests.support.toy import TOY_OPTS, write_toy_coco


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONWARNINGS", "error::BytesWarning")
    loggers = [logging.getLogger(name) for name in _MESSAGES]
    before = [logger.filters[:] for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hide_messages()
        yield
    for logger, filters in zip(loggers, before, strict=True):
        logger.filters = filters


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.jit.script(torch.nn.Identity()),
        lambda: torch.meshgrid(torch.zeros(2), torch.zeros(2)),
    ],
)
def test_warnings_of_torch(call: Callable[[], object], hidden: None) -> None:
    call()  # raises if the warning is not hidden
    with pytest.raises(UserWarning, match=r"^another one$"):
        warnings.warn("another one", UserWarning, stacklevel=1)


def test_a_warning_of_distributed_training() -> None:
    text = "`broadcast_buffers` is deprecated"
    assert (FutureWarning, text) in _WARNINGS
    assert f'"{text}. Use' in inspect.getsource(distributed)


def test_messages_of_loggers(hidden: None, caplog: pytest.LogCaptureFixture) -> None:
    is_fx_tracing_warning.__wrapped__()
    assert f'"{_MESSAGES[cpp_extension.__name__]}' in inspect.getsource(cpp_extension)
    for name, text in _MESSAGES.items():
        logging.getLogger(name).warning("%s ...", text)
        logging.getLogger(name).warning("another message of %s", name)
    # torch's loggers do not reach caplog's handler if torch has set up its own.
    shown = [r.getMessage() for r in caplog.records]
    assert all(message.startswith("another message") for message in shown)
    for name in _MESSAGES:
        logger = logging.getLogger(name)
        records = [logger.makeRecord(name, 30, "", 0, text, (), None)
                   for text in (_MESSAGES[name], "another")]  # fmt: skip
        assert [bool(logger.filter(record)) for record in records] == [False, True]


def test_processes_inherit_the_warnings(hidden: None) -> None:
    hide_messages()
    options = os.environ["PYTHONWARNINGS"].split(",")
    assert options[0] == "error::BytesWarning"
    assert len(options) == len(set(options)) == 1 + len(_WARNINGS)
    texts = [f"{text}. And more" for category, text in _WARNINGS if category is FutureWarning]
    code = f"import warnings; [warnings.warn(t, FutureWarning) for t in {[*texts, 'shown']!r}]"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "FutureWarning: shown" in result.stderr
    assert "deprecated" not in result.stderr


def test_the_first_line_comes_before_the_imports_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    announce("train")
    assert capsys.readouterr().err == ""
    monkeypatch.delitem(sys.modules, "torch")
    announce("train")
    assert capsys.readouterr().err == "d2-plugins train: loading PyTorch and detectron2 ...\n"


@pytest.mark.slow
def test_a_training_prints_one_line_on_stderr(tmp_path: Path) -> None:
    """Although it imports detectron2, trains a step and evaluates."""
    json_file, images = map(str, write_toy_coco(tmp_path, num_images=2))
    data = [f"--{s}-{k}" for s in ("train", "val") for k in ("json", "images")]
    words = [w for pair in zip(data, [json_file, images] * 2, strict=True) for w in pair]
    run = ["OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()"]
    config = ["--config-file", "Demo/faster_rcnn_crpn.yaml", "--num-gpus", "0"]
    argv = [sys.executable, str(REPO / "d2_plugins_command.py"), "train"]
    argv += [*config, *words, *TOY_OPTS, *run]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    env |= {"PYTHONPATH": str(REPO), "CUDA_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(argv, capture_output=True, text=True, timeout=200, env=env)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "d2-plugins train: loading PyTorch and detectron2 ...\n"
    assert re.search("AP50", result.stdout)
