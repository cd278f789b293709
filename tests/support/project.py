"""Arguments of setup.py, supported Pythons and locked versions, for tests."""

import re
import runpy
from functools import cache
from typing import Any
from unittest import mock

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.helpers import REPO

RUN, DEV, DETECTRON2 = "run.txt", "dev.txt", "detectron2.txt"


def setup_arguments() -> dict[str, Any]:
    """Return the arguments with which setup.py calls setup()."""
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(REPO / "setup.py"))
    return dict(setup.call_args.kwargs)


PACKAGE = setup_arguments()
_VERSIONS = [f"3.{minor}" for minor in range(8, 30)]
PYTHONS = list(SpecifierSet(PACKAGE["python_requires"]).filter(_VERSIONS))


def holds(requirement: Requirement, python: str) -> bool:
    """Tell whether a requirement, without extras, counts for a version of Python on Linux."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "extra": "",
    }
    return requirement.marker is None or requirement.marker.evaluate(environment)


@cache
def lines(file: str) -> list[Requirement]:
    """Return the requirements in a file of requirements/, without hashes."""
    text = (REPO / "requirements" / file).read_text(encoding="utf-8")
    words = (re.sub(r"( #| --hash).*", "", line).strip() for line in text.splitlines())
    return [Requirement(line) for line in words if line and not line.startswith(("#", "-"))]


def pins(python: str, *files: str) -> dict[str, Version]:
    """Return the version of each package in the files, for a version of Python.

    Raises:
        AssertionError: a package has several versions or a range of versions.
    """
    found: dict[str, Version] = {}
    for requirement in (line for file in files for line in lines(file)):
        if holds(requirement, python):
            (specifier,) = requirement.specifier
            name = canonicalize_name(requirement.name)
            assert specifier.operator == "==", requirement
            assert name not in found, f"{name} has two versions for Python {python}"
            found[name] = Version(specifier.version)
    return found
