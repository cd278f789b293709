"""tools/prepare_datasets.py runs as a script; tests/cli/test_prepare_datasets.py has the rest."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.support.helpers import REPO

TOOL = REPO / "tools" / "prepare_datasets.py"


def test_the_tool_is_thin_and_gives_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(TOOL.read_text().splitlines()) < 80
    monkeypatch.setattr(sys, "argv", [str(TOOL), "check", "--json", str(tmp_path / "gone.json")])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("error: check takes")
