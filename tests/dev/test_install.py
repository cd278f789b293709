"""dev/install.sh accepts the supported Pythons and refuses others before it installs anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.helpers import REPO
from tests.support.project import PYTHONS

MAKES_A_VENV = 7
INTERPRETER = f"""#!/bin/sh
[ "$1" = -c ] || exit {MAKES_A_VENV}
exec {sys.executable} -S -c "import sys; sys.version_info = VERSION; exec(sys.argv[1])" "$2"
"""


def install(folder: Path, version: tuple[int, int, int]) -> subprocess.CompletedProcess[str]:
    """Run the script with an interpreter that says it has a version, and makes no venv."""
    python = folder / "python"
    python.write_text(INTERPRETER.replace("VERSION", repr(version)))
    python.chmod(0o755)
    return subprocess.run(
        [str(REPO / "dev" / "install.sh"), str(folder / "venv")],
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 14, 0), (2, 7, 18)])
def test_other_pythons_are_refused_in_one_line(
    version: tuple[int, int, int], tmp_path: Path
) -> None:
    result = install(tmp_path, version)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert ".".join(map(str, version)) in result.stderr
    assert all(python in result.stderr for python in PYTHONS)


@pytest.mark.parametrize("python", PYTHONS)
def test_supported_pythons_are_accepted(python: str, tmp_path: Path) -> None:
    major, minor = map(int, python.split("."))
    assert install(tmp_path, (major, minor, 1)).returncode == MAKES_A_VENV
