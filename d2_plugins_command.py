"""Entry point of the ``d2-plugins`` command.

It stands outside the package because ``import d2_plugins`` imports torch and detectron2 and
registers the components, which takes seconds, and ``d2-plugins --help`` needs none of that. The
dispatcher, ``d2_plugins/cli/main.py``, uses the standard library only; it is imported here below
another package name, so that ``d2_plugins/__init__.py`` runs only when a command does.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: name of the command and its arguments; None for those of the process.

    Returns:
        The exit status.
    """
    spec = find_spec("d2_plugins")  # finds the package without importing it
    assert spec is not None
    package = ModuleType("_d2_plugins_without_imports")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[package.__name__] = package
    return import_module(f"{package.__name__}.cli.main").main(argv)


if __name__ == "__main__":
    raise SystemExit(main())
