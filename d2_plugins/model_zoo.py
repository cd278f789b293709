"""Config files by name and by path, with one-line errors.

The counterpart of ``detectron2.model_zoo`` (which itself needs pkg_resources).
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, LazyConfig

from .config import config_values, get_cfg
from .config_schema import check_config
from .errors import UsageError, nearest

__all__ = [
    "find_config",
    "get_config",
    "get_config_file",
    "list_configs",
    "read_config",
]


# The largest config of the zoo has some 200 values.
_MAX_NODES = 100_000
# "<<" is the key that merges another mapping.
_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
# Exceptions of yacs and detectron2 for a config that does not fit the defaults.
_MERGE_ERRORS = (AssertionError, AttributeError, KeyError, TypeError, ValueError)


def _root() -> Path:
    # A wheel has the configs inside the package; a checkout has them next to it. Both are found
    # from this file, so that the configs always belong to the code that reads them.
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def list_configs() -> list[str]:
    """Return the names of all YAML configs of the zoo, e.g. ``"Demo/csp_cascade.yaml"``."""
    return _names("**/*.yaml")


def _names(pattern: str) -> list[str]:
    root = _root()
    return sorted(str(path.relative_to(root).as_posix()) for path in root.glob(pattern))


def get_config_file(name: str) -> str:
    """Return the path of a config of the zoo.

    Args:
        name: path relative to the zoo, e.g. ``"csp_cascade.yaml"`` or ``"lazy/csp_cascade.py"``.

    Raises:
        FileNotFoundError: the zoo has no such config; the message names the nearest ones.
    """
    path = _root() / name
    if not path.is_file():
        near = nearest(name, [*list_configs(), *_names("lazy/*.py")])
        raise FileNotFoundError(
            f"No config '{name}' in d2_plugins' model zoo. Nearest: {near}. "
            "d2_plugins.model_zoo.list_configs() returns all names."
        )
    return str(path)


def find_config(config_file: str) -> str:
    """Return the path of a config that is given as a file or as a name of the zoo.

    Args:
        config_file: path of a file, or name of the zoo, with or without a leading ``configs/``;
            names work from any folder.

    Raises:
        UsageError: there is neither; the message names the nearest configs of the zoo.
    """
    if Path(config_file).is_file():
        return config_file
    try:
        return get_config_file(config_file.removeprefix("configs/"))
    except FileNotFoundError as error:
        raise UsageError(f"There is no config file '{config_file}'. {error}") from error


def get_config(name: str, trained: bool = False) -> Any:
    """Return the config called ``name``.

    Args:
        name: path relative to the zoo.
        trained: set ``MODEL.WEIGHTS`` to weights trained with this config instead of the config's
            own initial weights.

    Returns:
        A CfgNode (a YAML merged onto ``d2_plugins.get_cfg()``); for a ``.py`` config an omegaconf
        ``DictConfig``.

    Raises:
        FileNotFoundError: the zoo has no such config.
        RuntimeError: ``trained`` is set and no trained weights are published.
    """
    if name.endswith(".py"):
        cfg = LazyConfig.load(get_config_file(name))
    else:
        cfg = get_cfg()
        cfg.merge_from_file(get_config_file(name), allow_unsafe=False)
    if trained:
        raise RuntimeError(
            f"No trained weights are published for '{name}' yet; "
            "docs/benchmarks.md lists what was trained."
        )
    return cfg


def read_config(config_file: str | None, opts: Sequence[str] = ()) -> CfgNode:
    """Return the default config with a file and KEY VALUE pairs merged into it.

    Args:
        config_file: path of a file or name of the zoo; None or "" for the defaults alone.
        opts: KEY VALUE pairs.

    Raises:
        UsageError: the file is missing, unsafe or not YAML, a key is unknown, or a value is not
            allowed.
    """
    cfg = get_cfg()
    if config_file:
        _merge_file(cfg, config_file)
    _merge_opts(cfg, list(opts))
    check_config(cfg)
    return cfg


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    path = find_config(config_file)
    try:
        _check_yaml(Path(path))
        cfg.merge_from_file(path, allow_unsafe=False)
    except yaml.constructor.ConstructorError as error:
        raise UsageError(
            f"{config_file} is refused: it holds a YAML tag that could run code ({error.problem})"
        ) from error
    except yaml.YAMLError as error:
        raise UsageError(f"{config_file} is not valid YAML: {error}") from error
    except UsageError:
        raise
    except (OSError, RecursionError) as error:
        raise UsageError(f"{config_file} cannot be read: {error}") from error
    except _MERGE_ERRORS as error:
        raise UsageError(f"{config_file}: {_explain(error, cfg)}") from error


def _check_yaml(path: Path, bases: tuple[Path, ...] = ()) -> None:
    """Check the structure of a YAML file and of its ``_BASE_`` files before they are merged.

    Args:
        path: the file.
        bases: the files that lead to this one.
    """
    path = Path(os.path.abspath(path))
    if path in bases:
        raise UsageError(f"_BASE_ of {bases[-1]} is {path}; allowed: a file that does not need it")
    if not path.is_file():
        raise UsageError(f"_BASE_ of {bases[-1]} is {path}; allowed: an existing file")
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{path} is {'empty' if root is None else 'not a mapping'}; allowed: keys")
    if _size(root, {}) > _MAX_NODES:
        raise UsageError(f"{path} has more than {_MAX_NODES} values, counting its aliases")
    _check_keys(path, root)
    sections = {name for name, value in get_cfg().items() if isinstance(value, CfgNode)}
    for key, value in root.value:
        is_section = isinstance(key, yaml.ScalarNode) and key.value in sections
        # A tag that runs code is refused later, and named as that.
        is_plain = not isinstance(value, yaml.MappingNode) and ":python/" not in value.tag
        if is_section and is_plain:
            raise UsageError(f"{key.value} is not a section in {path}; allowed: a section of keys")
        if key.value == "VERSION" and value.tag != "tag:yaml.org,2002:int":
            raise UsageError(f"VERSION is {value.value}; allowed: 2")
        if key.value == "_BASE_":
            names = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for name in names:
                _check_yaml(_base_path(path, name), (*bases, path))


def _check_keys(path: Path, node: yaml.MappingNode) -> None:
    """Check that all keys of nested mappings are words: YAML allows other types."""
    for key, value in node.value:
        if key.tag not in _KEY_TAGS:
            name = key.value if isinstance(key, yaml.ScalarNode) else "that is a list or a mapping"
            raise UsageError(f"{path} has a key {name}; allowed: words")
        if isinstance(value, yaml.MappingNode):
            _check_keys(path, value)


def _base_path(path: Path, name: yaml.Node) -> Path:
    if not isinstance(name, yaml.ScalarNode) or not name.value or "://" in name.value:
        raise UsageError(f"_BASE_ of {path} is {name.value}; allowed: local files")
    return path.parent / Path(name.value).expanduser()


def _size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Return the number of values below a node with its aliases written out."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # an alias within its own anchor has no end
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = [child if isinstance(child, tuple) else (child,) for child in children]
        sizes[id(node)] = 1 + sum(_size(child, sizes) for pair in pairs for child in pair)
    return sizes[id(node)]


def _merge_opts(cfg: CfgNode, opts: list[str]) -> None:
    try:
        cfg.merge_from_list(opts)
    except (*_MERGE_ERRORS, RecursionError, MemoryError) as error:
        bad = [key for key in opts[::2] if key not in dict(config_values(cfg))]
        if bad:
            raise UsageError(_unknown_key(bad[0], cfg)) from error
        raise UsageError(str(error)) from error


def _explain(error: Exception, cfg: CfgNode) -> str:
    message = str(error).strip("\"'")
    if "Non-existent config key" in message:
        return _unknown_key(message.rsplit(": ", 1)[-1], cfg)
    return message


def _unknown_key(key: str, cfg: CfgNode) -> str:
    known = list(dict(config_values(cfg)))
    same_name = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = ", ".join(same_name[:3]) or nearest(key, known)
    return f"There is no config key '{key}'. Nearest: {near}"
