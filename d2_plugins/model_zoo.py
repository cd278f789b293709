"""Config files by name, as detectron2.model_zoo has it (which itself needs pkg_resources)."""

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig

from .config import get_cfg

__all__ = ["find_config", "get_config", "get_config_file", "list_configs"]


def _root() -> Path:
    return Path(str(files("d2_plugins.configs")))


def list_configs() -> list[str]:
    """Names of all YAML configs, relative to the zoo, e.g. ``"Demo/csp_cascade.yaml"``."""
    return _names("**/*.yaml")


def _names(pattern: str) -> list[str]:
    root = _root()
    return sorted(str(path.relative_to(root).as_posix()) for path in root.glob(pattern))


def get_config_file(name: str) -> str:
    """Path of the config called ``name``.

    Args:
        name: relative to the zoo, e.g. ``"csp_cascade.yaml"`` or ``"lazy/csp_cascade.py"``.

    Raises:
        FileNotFoundError: there is no such config; the message names the nearest ones.
    """
    path = _root() / name
    if not path.is_file():
        known = [*list_configs(), *_names("lazy/*.py")]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise FileNotFoundError(
            f"No config '{name}' in d2_plugins' model zoo. Nearest: {', '.join(near)}. "
            "d2_plugins.model_zoo.list_configs() has all."
        )
    return str(path)


def find_config(config_file: str) -> str:
    """Path of a config that a user names: a file, or else one of the zoo.

    Args:
        config_file: a path, or a name of the zoo, which works from any folder, with or without
            ``configs/`` in front.

    Raises:
        FileNotFoundError: there is neither; the message names the nearest configs of the zoo.
    """
    if Path(config_file).is_file():
        return config_file
    return get_config_file(config_file.removeprefix("configs/"))


def get_config(name: str, trained: bool = False) -> Any:
    """The config called ``name``: a YAML merged onto ``d2_plugins.get_cfg()``, or a LazyConfig.

    Args:
        name: relative to the zoo.
        trained: set ``MODEL.WEIGHTS`` to weights trained with this very config instead of the
            config's own starting weights.

    Returns:
        A CfgNode, or of a ``.py`` an omegaconf ``DictConfig``.

    Raises:
        FileNotFoundError: there is no such config.
        RuntimeError: ``trained`` is asked for and no trained weights are published.
    """
    if name.endswith(".py"):
        cfg = LazyConfig.load(get_config_file(name))
    else:
        cfg = get_cfg()
        cfg.merge_from_file(get_config_file(name), allow_unsafe=False)
    if trained:
        raise RuntimeError(
            f"No trained weights are published for '{name}' yet; "
            "docs/benchmarks.md says what was trained."
        )
    return cfg
