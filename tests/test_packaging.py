"""The package as users install it: wheel, editable install, checkout on PYTHONPATH, command."""

import os
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.support.helpers import REPO
from tests.support.project import PACKAGE

pytestmark = pytest.mark.slow

# Folders of the installed libraries. With -S Python does not read the .pth files in them, so that
# the checkout under test, which they may name, is not found through them.
SITE_PACKAGES = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
FIND_CONFIG = (
    "import d2_plugins; from d2_plugins import model_zoo;"
    "print(d2_plugins.__file__);"
    "print(model_zoo.find_config('configs/csp_cascade.yaml'));"
    "print(model_zoo.get_config_file('lazy/csp_cascade.py'))"
)


def run(*words: str | Path, cwd: Path | None = None, **env: str) -> str:
    """Run a program to a successful end and return its stdout."""
    result = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def python(code: str, *flags: str, cwd: Path | None = None, **env: str) -> str:
    return run(sys.executable, *flags, "-c", code, cwd=cwd, **env)


def pip(*words: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second checkout, so that no build folder appears in this one."""
    folder = tmp_path_factory.mktemp("checkout")
    run("git", "-C", REPO, "checkout-index", "-a", f"--prefix={folder}/")
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, checkout)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", folder, wheel)
    return folder


def test_wheel_finds_its_configs(installed: Path, tmp_path: Path) -> None:
    found = python(FIND_CONFIG, cwd=tmp_path, PYTHONPATH=str(installed))
    assert all(line.startswith(str(installed)) for line in found.splitlines())


def test_checkout_on_the_path_finds_its_own_configs(checkout: Path, tmp_path: Path) -> None:
    """Not those of the checkout that is installed where the tests run."""
    found = python(FIND_CONFIG, cwd=tmp_path, PYTHONPATH=str(checkout))
    assert all(line.startswith(str(checkout)) for line in found.splitlines())


def test_editable_install_finds_its_configs(checkout: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip("install", "--no-deps", "--no-build-isolation", "--target", site, "--editable", checkout)
    path = os.pathsep.join([str(site), *SITE_PACKAGES])
    code = f"import site; site.addsitedir({str(site)!r}); {FIND_CONFIG}"
    found = python(code, "-S", cwd=tmp_path, PYTHONPATH=path)
    assert all(line.startswith(str(checkout)) for line in found.splitlines())
    script = (site / "bin" / "d2-plugins").read_text()
    assert "d2_plugins_command" in script


def test_wheel_holds_every_config_and_nothing_else_of_the_checkout(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = run("git", "-C", REPO, "ls-files", "configs").split()
    assert {f"d2_plugins/{name}" for name in configs} <= names
    modules = run("git", "-C", REPO, "ls-files", "d2_plugins").split()
    assert set(modules) <= names  # a folder without __init__.py would be left out
    assert "d2_plugins/py.typed" in names
    names.remove("d2_plugins_command.py")
    assert not [n for n in names if not n.startswith(("d2_plugins/", "d2_plugins-"))]


def test_description_on_an_index_has_no_local_link(wheel: Path) -> None:
    """An index shows README without the checkout; pip shows the rest of the metadata."""
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = message_from_bytes(archive.read(name))
    assert metadata["Requires-Python"] == PACKAGE["python_requires"]
    assert metadata["License-File"] == "LICENSE"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    text = metadata.get_payload()
    assert isinstance(text, str)
    assert "## Train on your own data" in text
    tokens = [child for token in MarkdownIt().parse(text) for child in token.children or ()]
    targets = [token.attrGet("href") or token.attrGet("src") for token in tokens]
    assert {str(target)[:8] for target in targets if target} == {"https://"}
    assert "`docs/own_data.md`" in text


def test_wheel_brings_the_command(installed: Path, tmp_path: Path) -> None:
    script = installed / "bin" / "d2-plugins"
    said = run(sys.executable, script, "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert said.startswith("usage: d2-plugins <command>")


@pytest.mark.slow
def test_wheel_prepares_trains_and_predicts_in_an_empty_folder(
    installed: Path, tmp_path: Path
) -> None:
    def command(*words: str) -> str:
        script = installed / "bin" / "d2-plugins"
        return run(sys.executable, script, *words, cwd=tmp_path, PYTHONPATH=str(installed))

    said = command("prepare", "shapes").splitlines()
    assert [line.split(": ")[0] for line in said[-2:]] == ["shapes_train", "shapes_val"]
    assert {path.name for path in tmp_path.iterdir()} == {"datasets"}
    steps = ["SOLVER.MAX_ITER", "5", "SOLVER.STEPS", "(4,)", "TEST.EVAL_PERIOD", "0"]
    config = ["--config-file", "Demo/faster_rcnn.yaml", "--num-gpus", "0"]
    command("train", *config, *steps, "OUTPUT_DIR", "run", "DATASETS.TEST", "()")
    image = next((tmp_path / "datasets").rglob("*.png"))
    command(
        *("predict", "--config-file", "run/config.yaml", "--input", str(image)),
        *("--json", "found.json", "MODEL.WEIGHTS", "run/model_final.pth"),
    )
    assert (tmp_path / "found.json").is_file()


def test_import_without_detectron2_says_how_to_get_it() -> None:
    # -S leaves site-packages, and so detectron2, out.
    with pytest.raises(AssertionError, match="pip install --no-build-isolation"):
        python("import d2_plugins", "-S", PYTHONPATH=str(REPO))


def test_environment_module_registers_the_components_and_the_keys_of_every_config() -> None:
    python(
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


def test_import_changes_no_default_of_detectron2() -> None:
    python(
        "from detectron2.config import get_cfg; before = get_cfg().dump();"
        "import d2_plugins; d2_plugins.get_cfg();"
        "assert get_cfg().dump() == before"
    )
