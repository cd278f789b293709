"""What users install: the wheel, the import without detectron2, the environment module."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.helpers import REPO


def python(code: str, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=env.pop("cwd", None),
        env={**os.environ, **env},
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    # A copy is built, so that no build folder appears in the checkout.
    source = folder / "source"
    subprocess.run(
        ["git", "-C", str(REPO), "checkout-index", "-a", f"--prefix={source}/"], check=True
    )
    subprocess.run([*pip, "-w", str(folder), str(source)], check=True, timeout=120)
    return next(folder.glob("*.whl"))


def test_installed_wheel_finds_its_configs(wheel: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*pip, str(tmp_path), str(wheel)], check=True, timeout=120)
    result = python(
        "import d2_plugins; from d2_plugins import model_zoo;"
        "print(d2_plugins.__file__); print(model_zoo.get_config_file('csp_cascade.yaml'))",
        cwd=str(tmp_path),
        PYTHONPATH=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    assert all(line.startswith(str(tmp_path)) for line in result.stdout.splitlines())


def test_wheel_holds_every_config_and_nothing_else_of_the_checkout(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "-C", str(REPO), "ls-files", "configs"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {f"d2_plugins/{name}" for name in tracked} <= names
    assert "d2_plugins/py.typed" in names
    assert not [n for n in names if not n.startswith(("d2_plugins/", "d2_plugins-"))]


def test_import_without_detectron2_says_how_to_get_it() -> None:
    # -S leaves site-packages, and so detectron2, out.
    result = python("import d2_plugins", "-S", PYTHONPATH=str(REPO))
    assert result.returncode != 0
    assert "pip install --no-build-isolation" in result.stderr


def test_environment_module_registers_the_components_and_the_keys_of_every_config() -> None:
    result = python(
        "from detectron2.config import get_cfg; from d2_plugins import model_zoo;"
        "[get_cfg().merge_from_file(model_zoo.get_config_file(name), allow_unsafe=False)"
        " for name in model_zoo.list_configs()];"
        "from detectron2.modeling import (BACKBONE_REGISTRY, PROPOSAL_GENERATOR_REGISTRY,"
        " ROI_HEADS_REGISTRY);"
        "BACKBONE_REGISTRY.get('build_cspnet_fpn_backbone');"
        "PROPOSAL_GENERATOR_REGISTRY.get('CascadeRPN');"
        "ROI_HEADS_REGISTRY.get('DoubleHeadROIHeads')",
        DETECTRON2_ENV_MODULE="d2_plugins.env",
    )
    assert result.returncode == 0, result.stderr


def test_import_changes_no_default_of_detectron2() -> None:
    result = python(
        "from detectron2.config import get_cfg; before = get_cfg().dump();"
        "import d2_plugins; d2_plugins.get_cfg();"
        "assert get_cfg().dump() == before"
    )
    assert result.returncode == 0, result.stderr
